"""Token events as bytes between a rank and an ingress: JSON arrays, never pickle.

An event is an array in the order of `TokenEvent`'s fields. Floats come back with the same bits:
JSON has the shortest text that does, and what JSON lacks (infinities, NaN) travels as text.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias, cast

import orjson

from cluster import errors
from cluster.errors import MalformedFrameError, TrinityError
from trinity_serve.engine.request import (
    EngineStats,
    FinishReason,
    RoutedExperts,
    TokenEvent,
    TokenLogprobs,
)

Json: TypeAlias = "str | int | float | bool | Sequence[Json] | Mapping[str, Json] | None"

MAX_MESSAGE_BYTES = 16 * 2**20


class RankFailedError(TrinityError):
    """A rank failed in a way that has no type of its own; the text is all that travels."""

    code = "rank_failed"

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind, self.message = kind, message

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


@dataclass(frozen=True, slots=True)
class RankState:
    """What a rank says of itself every half second: the ping, `/ready` and `/metrics`."""

    stats: EngineStats
    not_ready: str
    """Why it cannot serve, or empty."""
    fingerprint: str = ""
    """What decides the bits of its outputs."""


def encode_state(state: RankState) -> bytes:
    """Return `state` as one message body."""
    return orjson.dumps(asdict(state))


def decode_state(body: bytes) -> RankState:
    """Return the state in a message body. Raises `MalformedFrameError`."""
    try:
        fields = orjson.loads(body)
        stats = EngineStats(**fields["stats"])
        return RankState(stats, str(fields["not_ready"]), str(fields["fingerprint"]))
    except (ValueError, TypeError, KeyError) as error:
        raise MalformedFrameError(f"state message of {len(body)} bytes: {error}") from error


def encode_events(events: Sequence[TokenEvent]) -> bytes:
    """Return `events` as one message body."""
    return orjson.dumps([_encode(event) for event in events])


def decode_events(body: bytes) -> list[TokenEvent]:
    """Return the events in a message body. Raises `MalformedFrameError`."""
    try:
        return [_decode(fields) for fields in cast("list[list[Json]]", orjson.loads(body))]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise MalformedFrameError(f"event message of {len(body)} bytes: {error}") from error


def _encode(event: TokenEvent) -> list[Json]:
    return [
        event.request_id,
        event.choice,
        event.attempt,
        event.index,
        event.token_id,
        None if event.logprobs is None else _encode_logprobs(event.logprobs),
        event.finish,
        event.stop_token_id,
        None if event.error is None else encode_error(event.error),
        event.num_cached_tokens,
        None
        if event.prompt_logprobs is None
        else list(map(_encode_logprobs, event.prompt_logprobs)),
        None if event.routed_experts is None else _encode_routing(event.routed_experts),
    ]


def _decode(fields: list[Json]) -> TokenEvent:
    request_id, choice, attempt, index, token_id, logprobs, finish, stop_id, error, *rest = fields
    cached, scores, routed = rest
    return TokenEvent(
        request_id=cast(str, request_id),
        choice=cast(int, choice),
        attempt=cast(int, attempt),
        index=cast(int, index),
        token_id=cast("int | None", token_id),
        logprobs=None if logprobs is None else _decode_logprobs(cast("list[Json]", logprobs)),
        finish=None if finish is None else FinishReason(cast(str, finish)),
        stop_token_id=cast("int | None", stop_id),
        error=None if error is None else decode_error(cast("list[Json]", error)),
        num_cached_tokens=cast(int, cached),
        prompt_logprobs=None
        if scores is None
        else tuple(map(_decode_logprobs, cast("list[list[Json]]", scores))),
        routed_experts=None if routed is None else _decode_routing(cast("list[Json]", routed)),
    )


def _encode_logprobs(logprobs: TokenLogprobs) -> list[Json]:
    top = [[token_id, _encode_float(value)] for token_id, value in logprobs.top]
    return [_encode_float(logprobs.chosen), top, logprobs.rank]


def _decode_logprobs(fields: list[Json]) -> TokenLogprobs:
    chosen, top, rank = fields
    pairs = cast("list[tuple[int, float | str]]", top)
    return TokenLogprobs(
        float(cast("float | str", chosen)),
        tuple((int(token_id), float(value)) for token_id, value in pairs),
        cast(int, rank),
    )


def _encode_routing(routing: RoutedExperts) -> list[Json]:
    return [routing.num_layers, routing.top_k, base64.b64encode(routing.ids).decode()]


def _decode_routing(fields: list[Json]) -> RoutedExperts:
    num_layers, top_k, ids = fields
    return RoutedExperts(cast(int, num_layers), cast(int, top_k), base64.b64decode(cast(str, ids)))


def _encode_float(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)


def encode_error(error: Exception) -> list[Json]:
    """Return an error of the tree as [class name, its fields]; any other one as its text."""
    known = getattr(errors, type(error).__name__, None)
    if known is type(error) and all(
        isinstance(arg, str | int | float | None) for arg in error.args
    ):
        return [type(error).__name__, list(error.args)]
    return [RankFailedError.__name__, [type(error).__name__, str(error)]]


def decode_error(fields: list[Json]) -> TrinityError:
    """Return the error that `encode_error` wrote. Only classes of the error tree are made."""
    name, args = cast(str, fields[0]), cast("list[str]", fields[1])
    known = getattr(errors, name, None)
    if isinstance(known, type) and issubclass(known, TrinityError):
        return known(*args)
    return RankFailedError(*(args if name == RankFailedError.__name__ else (name, str(args))))
