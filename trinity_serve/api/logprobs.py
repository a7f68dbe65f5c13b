"""Log-probabilities in the forms of both endpoints."""

from __future__ import annotations

from collections.abc import Sequence

from trinity_serve.api.choice import Delta
from trinity_serve.api.reply import ReplyHead

_LEAST = -9999.0
"""JSON has no infinity; clients expect a number."""


def completion_logprobs(
    deltas: Sequence[Delta], head: ReplyHead, base_offset: int
) -> dict[str, object]:
    """Return the lists of /v1/completions; each token's best ones include the chosen.

    `base_offset` is where the generated text starts in the choice's text.
    """
    tokens, values, top, offsets = [], [], [], []
    for delta in deltas:
        if delta.token_id is None or delta.logprobs is None:
            continue
        name = head.token_name(delta.token_id)
        best = {head.token_name(token): _finite(value) for token, value in delta.logprobs.top}
        tokens.append(name)
        values.append(_finite(delta.logprobs.chosen))
        top.append({name: values[-1]} | best)
        offsets.append(base_offset + delta.text_offset)
    return {
        "text_offset": offsets,
        "token_logprobs": values,
        "tokens": tokens,
        "top_logprobs": top,
    }


def chat_logprobs(deltas: Sequence[Delta], head: ReplyHead) -> dict[str, object]:
    """Return the `logprobs` object of /v1/chat/completions."""
    content = []
    for delta in deltas:
        if delta.token_id is None or delta.logprobs is None:
            continue
        entry = _entry(delta.token_id, delta.logprobs.chosen, head)
        entry["top_logprobs"] = [_entry(token, value, head) for token, value in delta.logprobs.top]
        content.append(entry)
    return {"content": content, "refusal": None}


def _entry(token_id: int, logprob: float, head: ReplyHead) -> dict[str, object]:
    return {
        "token": head.token_name(token_id),
        "logprob": _finite(logprob),
        "bytes": list(head.tokenizer.token_bytes(token_id)),
    }


def _finite(value: float) -> float:
    return value if value > _LEAST else _LEAST
