"""What every generation is answered with, whole or as a stream, at either endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import orjson

from cluster.deadline import Deadline
from trinity_serve.api.choice import Choice, Delta
from trinity_serve.api.errors import error_object
from trinity_serve.api.tokenizer import TextTokenizer
from trinity_serve.engine.request import FinishReason, TokenLogprobs

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Plan:
    """One client request, ready to run.

    `ready` are deltas that need no engine (`echo` with `max_tokens: 0`).
    """

    reply_id: str
    choices: tuple[Choice, ...]
    num_choices: int
    prompt_tokens: int
    deadline: Deadline
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    stream_interval: int = 1
    """Tokens in a chunk."""
    ready: tuple[Delta, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """The constant part of a reply and how tokens are named in it."""

    reply_id: str
    created_s: int
    model: str
    system_fingerprint: str | None
    tokenizer: TextTokenizer
    with_logprobs: bool = False
    with_token_ids: bool = False
    tokens_as_ids: bool = False

    def token_name(self, token_id: int) -> str:
        """Return a token as logprobs show it."""
        return f"token_id:{token_id}" if self.tokens_as_ids else self.tokenizer.token_text(token_id)

    def fields(self, kind: str) -> dict[str, object]:
        """Return what a reply of `kind` (its `object`) begins with."""
        return {
            "id": self.reply_id,
            "object": kind,
            "created": self.created_s,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }

    def sse_head(self, kind: str) -> bytes:
        """Return a chunk's bytes up to the first choice's index."""
        return b"data: " + orjson.dumps(self.fields(kind))[:-1] + b',"choices":['


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a request, so far or in all."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    def fields(self) -> dict[str, object]:
        """Return OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(slots=True)
class WholeChoice:
    """A choice collected to its end."""

    text: str = ""
    tokens: list[Delta] = field(default_factory=list)
    finish: FinishReason | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    routed_experts: bytes = b""


class Reply(Protocol):
    """An endpoint's form of reply. Pure; a stream's parts are whole SSE events."""

    @property
    def last(self) -> bytes:
        """What a stream ends with, after an error too; may be empty."""
        ...

    def opening(self, usage: Usage) -> bytes:
        """Return the events before the first token; may be empty."""
        ...

    def chunk(self, delta: Delta, usage: bytes, tokens: Sequence[Delta] | None = None) -> bytes:
        """Return one event, or nothing when the delta shows nothing.

        `usage` is the end of the chunk: empty, or ``,"usage":…``. `tokens` are the deltas that
        `delta` was made of, if these are several.
        """
        ...

    def usage_chunk(self, usage: Usage) -> bytes:
        """Return what comes after the last token when usage was asked for."""
        ...

    def failure(self, error: Exception) -> bytes:
        """Return what tells of an error after the stream has begun."""
        ...

    def whole(self, choices: list[WholeChoice], usage: Usage) -> bytes:
        """Return the JSON of an answer that is not streamed."""
        ...


def collect(choices: list[WholeChoice], deltas: list[Delta] | tuple[Delta, ...]) -> None:
    """Add deltas to the choices they belong to."""
    for delta in deltas:
        choice = choices[delta.index]
        choice.text += delta.text
        if delta.prompt_logprobs is not None:
            choice.prompt_logprobs = delta.prompt_logprobs
        if delta.routed_experts:
            choice.routed_experts = delta.routed_experts
        if delta.token_id is not None:
            choice.tokens.append(delta)
        if delta.finish is not None:
            choice.finish, choice.stop_reason = delta.finish, delta.stop_reason


def sse_event(content: object) -> bytes:
    """Return one SSE event."""
    return b"data: " + orjson.dumps(content) + b"\n\n"


def named_event(content: dict[str, object]) -> bytes:
    """Return one SSE event that is named by its type."""
    return b"event: %b\n%b" % (str(content["type"]).encode(), sse_event(content))


class OpenAiStream:
    """How streams of chat and completions end."""

    last = DONE

    def failure(self, error: Exception) -> bytes:
        """See `Reply.failure`."""
        return sse_event(error_object(error))
