"""What came of a request, to the bit: tokens, texts, logprobs, times; and how two differ.

JSON's shortest float is the float: two logprobs are equal here if and only if their bits are.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from dataclasses import dataclass, field
from typing import Literal

import orjson

from tests.chaos.workload import ChaosRequest
from tests.support.http_stream import BrokenStreamError, HttpAnswer, post

FailureKind = Literal["refused", "unavailable", "broken", "error", "timeout"]
"""An HTTP status; a typed 503 with Retry-After, or an error event that says the same; a connection
that ended too soon; another error event, or nonsense; no end in time."""

UNAVAILABLE_CODES = {"coverage_lost", "not_ready"}
"""Of errors by which the server says that it cannot serve for now."""

JsonObject = dict[str, object]


@dataclass(frozen=True)
class Failure:
    """How a request failed."""

    kind: FailureKind
    message: str


@dataclass
class ChoiceOutcome:
    """One choice, its chunks joined."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: dict[str, list[object]] = field(default_factory=dict)
    finish_reason: str | None = None

    def take(self, chunk: JsonObject) -> None:
        """Add one chunk of a stream, or a whole choice."""
        ids = chunk.get("token_ids")
        self.token_ids += ids if isinstance(ids, list) else []
        message = chunk.get("delta") or chunk.get("message")
        text = message.get("content") if isinstance(message, dict) else chunk.get("text")
        self.text += str(text or "")
        logprobs = chunk.get("logprobs")
        for name, values in logprobs.items() if isinstance(logprobs, dict) else ():
            self.logprobs.setdefault(name, []).extend(values or [])
        reason = chunk.get("finish_reason")
        self.finish_reason = str(reason) if reason else self.finish_reason


@dataclass
class Outcome:
    """One request, once. Times are seconds on the monotonic clock."""

    request: ChaosRequest
    started_s: float
    ended_s: float = 0.0
    chunk_times_s: list[float] = field(default_factory=list)
    """When each chunk with tokens came; empty for a whole answer."""
    choices: dict[int, ChoiceOutcome] = field(default_factory=dict)
    failure: Failure | None = None

    def longest_gap_s(self, from_s: float = 0.0, until_s: float = math.inf) -> float:
        """Return the longest time between two chunks, of those whose middle lies in this span."""
        pairs = itertools.pairwise(self.chunk_times_s)
        gaps = [b - a for a, b in pairs if from_s <= (a + b) / 2 < until_s]
        return max(gaps, default=0.0)

    def take(self, event: JsonObject) -> None:
        """Add the choices of an answer or of one event."""
        choices = event.get("choices")
        for chunk in choices if isinstance(choices, list) else ():
            self.choices.setdefault(chunk["index"], ChoiceOutcome()).take(chunk)


async def run_request(url: str, request: ChaosRequest, deadline_s: float) -> Outcome:
    """Run one request to its end; it ends within `deadline_s`, and a failure is in the outcome."""
    outcome = Outcome(request, time.monotonic())
    try:
        async with asyncio.timeout(deadline_s), post(url, request.path, request.body) as answer:
            if answer.status != 200:
                outcome.failure = await _refusal(answer)
            elif request.streams:
                await _read_stream(answer, outcome)
            else:
                outcome.take(orjson.loads(await answer.read()))
    except TimeoutError:
        outcome.failure = Failure("timeout", f"no end within {deadline_s:g} s")
    except (OSError, BrokenStreamError) as error:
        outcome.failure = Failure("broken", f"{type(error).__name__}: {error}")
    except (ValueError, KeyError, TypeError) as error:
        outcome.failure = Failure("error", f"not an answer: {error!r}")
    outcome.ended_s = time.monotonic()
    return outcome


async def _refusal(answer: HttpAnswer) -> Failure:
    body = await answer.read()
    message = f"{answer.status}: {body[:300]!r}"
    typed = answer.status == 503 and "retry-after" in answer.headers
    if typed and _says_unavailable(orjson.loads(body).get("error")):
        return Failure("unavailable", message)
    return Failure("refused", message)


def _says_unavailable(error: object) -> bool:
    return isinstance(error, dict) and error.get("code") in UNAVAILABLE_CODES


async def _read_stream(answer: HttpAnswer, outcome: Outcome) -> None:
    async for data in answer.events():
        if data == b"[DONE]":
            return
        event = orjson.loads(data)
        if "error" in event:
            kind: FailureKind = "unavailable" if _says_unavailable(event["error"]) else "error"
            outcome.failure = Failure(kind, str(event["error"])[:300])
            return
        if any(choice.get("token_ids") or choice.get("text") for choice in event["choices"]):
            outcome.chunk_times_s.append(time.monotonic())
        outcome.take(event)
    outcome.failure = Failure("broken", "the stream ended without [DONE]")


def difference(golden: Outcome, other: Outcome) -> str | None:
    """Return the first thing in which two successful outcomes differ; None when they are equal."""
    if golden.choices.keys() != other.choices.keys():
        return f"choices are {sorted(other.choices)}, not {sorted(golden.choices)}"
    for index, expected in golden.choices.items():
        found = other.choices[index]
        for name in ("token_ids", "text", "finish_reason"):
            if getattr(found, name) != getattr(expected, name):
                where = _first(getattr(found, name), getattr(expected, name))
                return f"choice {index}: {name} {where}"
        if found.logprobs.keys() != expected.logprobs.keys():
            return f"choice {index}: logprobs of {sorted(found.logprobs)}"
        for name, values in expected.logprobs.items():
            if found.logprobs[name] != values:
                return f"choice {index}: logprobs.{name} {_first(found.logprobs[name], values)}"
    return None


def _first(found: object, expected: object) -> str:
    if isinstance(found, list | str) and isinstance(expected, list | str):
        pairs = enumerate(itertools.zip_longest(found, expected))
        place, (one, other) = next((at, pair) for at, pair in pairs if pair[0] != pair[1])
        return f"differ at {place}: {one!r}, not {other!r}"
    return f"is {found!r}, not {expected!r}"
