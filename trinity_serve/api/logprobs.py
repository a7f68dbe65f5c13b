"""Log-probabilities in the forms of both endpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trinity_serve.api.choice import Delta
from trinity_serve.api.detokenizer import IncrementalDetokenizer
from trinity_serve.api.reply import ReplyHead
from trinity_serve.engine.request import TokenLogprobs

_LEAST = -9999.0
"""JSON has no infinity; clients expect a number."""


@dataclass(slots=True)
class CompletionLogprobs:
    """The lists of /v1/completions; each token's best ones include the token itself."""

    head: ReplyHead
    text_offset: list[int] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)

    def add_prompt(
        self, prompt_ids: list[int], scores: Sequence[TokenLogprobs], count: int
    ) -> None:
        """Add the prompt with `count` best tokens each; of its first token nothing is known."""
        detokenizer = IncrementalDetokenizer(self.head.tokenizer)
        offset = 0
        for token_id, score in zip(prompt_ids, (None, *scores), strict=True):
            self._add(token_id, offset, score, count)
            offset += len(detokenizer.push(token_id))

    def add_output(self, deltas: Sequence[Delta], base_offset: int) -> None:
        """Add generated tokens; `base_offset` is where their text starts in the choice's text."""
        for delta in deltas:
            if delta.token_id is not None and delta.logprobs is not None:
                self._add(delta.token_id, base_offset + delta.text_offset, delta.logprobs)

    def fields(self) -> dict[str, object]:
        """Return the JSON object."""
        return {
            "text_offset": self.text_offset,
            "token_logprobs": self.token_logprobs,
            "tokens": self.tokens,
            "top_logprobs": self.top_logprobs,
        }

    def _add(
        self, token_id: int, offset: int, score: TokenLogprobs | None, count: int | None = None
    ) -> None:
        name = self.head.token_name(token_id)
        self.tokens.append(name)
        self.text_offset.append(offset)
        if score is None:
            self.token_logprobs.append(None)
            self.top_logprobs.append(None)
            return
        chosen = _finite(score.chosen)
        best = {self.head.token_name(token): _finite(value) for token, value in score.top[:count]}
        self.token_logprobs.append(chosen)
        self.top_logprobs.append({name: chosen} | best)


def prompt_logprobs(
    prompt_ids: list[int], scores: Sequence[TokenLogprobs], head: ReplyHead
) -> list[dict[str, object] | None]:
    """Return vLLM's `prompt_logprobs`: for each token a map from id to what is known of it."""
    found: list[dict[str, object] | None] = [None]
    for token_id, score in zip(prompt_ids[1:], scores, strict=True):
        told = {token_id: (score.chosen, score.rank)}
        for rank, (token, value) in enumerate(score.top, start=1):
            told.setdefault(token, (value, rank))
        found.append(
            {
                str(token): {
                    "logprob": _finite(value),
                    "rank": rank,
                    "decoded_token": head.token_name(token),
                }
                for token, (value, rank) in told.items()
            }
        )
    return found


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
