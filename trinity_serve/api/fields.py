"""Request fields that are not built: refused by name and reason, or known to mean nothing here.

A known field with a value that changes nothing (`suffix: ""`) is let through, since
clients send them by default. A name that neither OpenAI's nor vLLM's reference has is ignored, with
one log line.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from cluster.errors import InvalidRequestError

_log = logging.getLogger(__name__)
_MAX_REMEMBERED = 256
"""Unknown names remembered, so that a client inventing names costs neither memory nor log."""

WITHOUT_EFFECT = frozenset(
    {
        "user",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
    }
)
"""Labels for the client's own books: no output depends on them."""


@dataclass(frozen=True, slots=True)
class NotBuilt:
    """A known field without an implementation; `neutral` are the values that ask for nothing."""

    reason: str
    neutral: tuple[object, ...] = ()


_OLD_GUIDED = "use structured_outputs"
_OLD_TOOLS = "use tools and tool_choice"
_TEXT_ONLY = "only text goes in and out"

NOT_BUILT: Mapping[str, NotBuilt] = MappingProxyType(
    {
        "length_penalty": NotBuilt("beam search is not built", (1,)),
        "use_beam_search": NotBuilt("beam search is not built", (False,)),
        "best_of": NotBuilt("only n choices are made, all of them returned", (1,)),
        "suffix": NotBuilt("the model does not fill in the middle", ("",)),
        "guided_json": NotBuilt(_OLD_GUIDED),
        "guided_regex": NotBuilt(_OLD_GUIDED),
        "guided_choice": NotBuilt(_OLD_GUIDED),
        "guided_grammar": NotBuilt(_OLD_GUIDED),
        "structural_tag": NotBuilt("use strict functions"),
        "whitespace_pattern": NotBuilt("up to 32 blanks stand between JSON tokens"),
        "disable_any_whitespace": NotBuilt("up to 32 blanks stand between JSON tokens", (False,)),
        "disable_additional_properties": NotBuilt("say so in the schema", (False,)),
        "disable_fallback": NotBuilt("there is one way to hold output to a grammar", (True,)),
        "functions": NotBuilt(_OLD_TOOLS, ([],)),
        "function_call": NotBuilt(_OLD_TOOLS, ("none", "auto")),
        "chat_template": NotBuilt("a template is never taken from a request"),
        "routed_experts": NotBuilt("use return_routed_experts", (False,)),
        "spaces_between_special_tokens": NotBuilt("tokens are joined as they are", (True,)),
        "mm_processor_kwargs": NotBuilt(_TEXT_ONLY, ({},)),
        "media_io_kwargs": NotBuilt(_TEXT_ONLY, ({},)),
        "prompt_embeds": NotBuilt(_TEXT_ONLY),
        "logits_processors": NotBuilt("code from a request is never run", ([],)),
        "truncation_side": NotBuilt("the end of a prompt is kept", ("left",)),
        "include_obfuscation": NotBuilt("chunks are not padded", (False,)),
        "moderation": NotBuilt("contents are not judged"),
        "modalities": NotBuilt(_TEXT_ONLY, (["text"],)),
        "audio": NotBuilt(_TEXT_ONLY),
        "prediction": NotBuilt("predicted outputs are not built"),
        "web_search_options": NotBuilt("no URL is ever fetched"),
        "store": NotBuilt("nothing is stored", (False,)),
        "service_tier": NotBuilt("there is one tier", ("auto", "default")),
        "verbosity": NotBuilt("the model has no such switch", ("medium",)),
        "kv_transfer_params": NotBuilt("KV transfer is not built", ({},)),
        "vllm_xargs": NotBuilt("there are no such extensions", ({},)),
        "watermarking": NotBuilt("outputs are not watermarked", (False,)),
        "ec_transfer_params": NotBuilt(_TEXT_ONLY, ({},)),
        "repetition_detection": NotBuilt("repetition is not looked for; use a penalty"),
        "return_token_offsets": NotBuilt("use logprobs of /v1/completions", (False,)),
        "return_prompt_text": NotBuilt("use /tokenize and /detokenize", (False,)),
        "return_mm_kwargs": NotBuilt(_TEXT_ONLY, (True, False)),
    }
)


@dataclass(frozen=True, slots=True)
class FieldTable:
    """What an endpoint knows of names that its schema has no field for."""

    not_built: Mapping[str, NotBuilt]
    without_effect: frozenset[str] = frozenset()
    elsewhere: frozenset[str] = frozenset()
    """Names of chat and completions, which clients may send to the wrong endpoint."""

    def get(self, name: str) -> NotBuilt | None:
        """Return why `name` is refused; None where it is not."""
        if name in self.not_built:
            return self.not_built[name]
        is_elsewhere = name in self.elsewhere and name not in self.without_effect
        return CHAT_ONLY if is_elsewhere else None


CHAT_ONLY = NotBuilt("it belongs to /v1/chat/completions")
COMPLETIONS_ONLY = NotBuilt("it belongs to /v1/completions", (False,))


@dataclass(slots=True)
class FieldCheck:
    """Judges names that the schema has no field for. Written by the event loop only."""

    _seen: set[str] = field(default_factory=set)

    def check(
        self, extra: Mapping[str, object] | None, path: str = "", table: FieldTable | None = None
    ) -> None:
        """Raise `InvalidRequestError` for a known field with a value that asks for something.

        `table` is that of chat and completions when none is given.
        """
        table = table or GENERATION_FIELDS
        for name, value in (extra or {}).items():
            known = table.get(name)
            if known is not None:
                _refuse_unless_neutral(path + name, value, known)
            elif name not in table.without_effect:
                self._note_unknown(path + name)

    def _note_unknown(self, name: str) -> None:
        if name not in self._seen and len(self._seen) < _MAX_REMEMBERED:
            self._seen.add(name)
            _log.warning("Ignoring unknown request field %r.", name[:100])


_ELSEWHERE: Mapping[str, NotBuilt] = MappingProxyType(
    {
        "messages": CHAT_ONLY,
        "top_logprobs": NotBuilt("it belongs to /v1/chat/completions", (0,)),
        "max_completion_tokens": CHAT_ONLY,
        "tools": NotBuilt(CHAT_ONLY.reason, ([],)),
        "tool_choice": NotBuilt(CHAT_ONLY.reason, ("none", "auto")),
        "parallel_tool_calls": NotBuilt(CHAT_ONLY.reason, (True, False)),
        "documents": NotBuilt(CHAT_ONLY.reason, ([],)),
        "reasoning_effort": NotBuilt(CHAT_ONLY.reason, ("none",)),
        "include_reasoning": NotBuilt(CHAT_ONLY.reason, (True,)),
        "thinking_token_budget": CHAT_ONLY,
        "prompt": COMPLETIONS_ONLY,
        "echo": COMPLETIONS_ONLY,
    }
)

GENERATION_FIELDS = FieldTable(MappingProxyType({**_ELSEWHERE, **NOT_BUILT}), WITHOUT_EFFECT)


def _refuse_unless_neutral(name: str, value: object, known: NotBuilt) -> None:
    if value is None or any(_same(value, neutral) for neutral in known.neutral):
        return
    message = f"{name} = {_short(value)} is not supported: {known.reason}."
    if known.neutral:
        message += f" Leave it out or set {' or '.join(repr(item) for item in known.neutral)}."
    raise InvalidRequestError(name, message)


def _same(value: object, neutral: object) -> bool:
    """Equal, where JSON's true is not 1."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
