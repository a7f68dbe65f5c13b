"""A small load generator: concurrent streams of `/v1/completions` with token ids as prompts.

It takes any OpenAI endpoint. Tokens are counted by the ids a server sends, else by events; its own
CPU time is told, so that it can be counted apart. Loops are bounded in number and time.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import orjson
import uvloop

from tests.support.http_stream import NO_HEADERS, BrokenStreamError, post

DEFAULT_DEADLINE_S = 300.0


@dataclass
class StreamResult:
    """What one stream saw. Times are seconds on the monotonic clock."""

    started_s: float
    token_times_s: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None

    @property
    def first_token_s(self) -> float:
        """Time to first token."""
        return self.token_times_s[0] - self.started_s

    @property
    def gaps_s(self) -> list[float]:
        """Times between tokens."""
        times = self.token_times_s
        return [after - before for before, after in itertools.pairwise(times)]


@dataclass(frozen=True)
class LoadResult:
    """All streams of one run."""

    streams: tuple[StreamResult, ...]
    wall_s: float
    cpu_s: float
    """The generator's own CPU time."""

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens per second over all streams, from the last first token on.

        The time to first token of every stream is excluded: only while all streams decode is the
        number of streams what it says.
        """
        start_s = max(stream.token_times_s[0] for stream in self.streams)
        end_s = max(stream.token_times_s[-1] for stream in self.streams)
        tokens = sum(t > start_s for stream in self.streams for t in stream.token_times_s)
        return tokens / (end_s - start_s)

    @property
    def first_token_s(self) -> float:
        """Median time to first token."""
        return float(np.median([stream.first_token_s for stream in self.streams]))

    def gap_s(self, quantile: float) -> float:
        """Return a quantile of all times between tokens; 1.0 is the longest."""
        gaps = [gap for stream in self.streams for gap in stream.gaps_s]
        return float(np.quantile(gaps, quantile, method="higher")) if gaps else 0.0


def random_prompts(
    count: int, length: int, seed: int, vocab_size: int = 4096, first_id: int = 13
) -> list[list[int]]:
    """Return prompts of ids in [first_id, vocab_size); another seed hits no prefix cache."""
    rng = np.random.default_rng(seed)
    return [rng.integers(first_id, vocab_size, length).tolist() for _ in range(count)]


def completion_body(
    model: str, prompt: Sequence[int], max_tokens: int, temperature: float = 0.0, seed: int = 0
) -> dict[str, object]:
    """Return the body of one streamed completion of exactly `max_tokens`."""
    return {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }


async def run_stream(
    url: str, body: dict[str, object], deadline_s: float, headers: Mapping[str, str] = NO_HEADERS
) -> StreamResult:
    """Run one streamed completion; errors end up in the result."""
    payload = orjson.dumps(body)
    result = StreamResult(time.monotonic())
    try:
        async with (
            asyncio.timeout(deadline_s),
            post(url, "/v1/completions", payload, headers) as answer,
        ):
            if answer.status != 200:
                result.error = f"status {answer.status}: {(await answer.read())[:500]!r}"
                return result
            async for event in answer.events():
                if not _take(result, event):
                    return result
        result.error = "the stream ended without [DONE]"
    except (OSError, TimeoutError, BrokenStreamError) as error:
        result.error = f"{type(error).__name__}: {error}"
    return result


def _take(result: StreamResult, data: bytes) -> bool:
    """Take one event; return whether more may come."""
    if data == b"[DONE]":
        return False
    event = orjson.loads(data)
    if "error" in event:
        result.error = str(event["error"])
        return False
    for choice in event["choices"]:
        ids = choice.get("token_ids") or []
        result.token_ids += ids
        result.token_times_s += [time.monotonic()] * max(len(ids), 1 if choice.get("text") else 0)
        result.finish_reason = choice.get("finish_reason") or result.finish_reason
    return True


def run_bodies(
    url: str,
    bodies: Sequence[dict[str, object]],
    deadline_s: float = DEFAULT_DEADLINE_S,
    headers: Mapping[str, str] = NO_HEADERS,
) -> LoadResult:
    """Run one stream per body, all at once. Raises RuntimeError when one fails or is empty."""

    async def run() -> list[StreamResult]:
        return await asyncio.gather(
            *(run_stream(url, body, deadline_s, headers) for body in bodies)
        )

    before_s, cpu_before_s = time.monotonic(), time.process_time()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        streams = runner.run(run())
    wall_s, cpu_s = time.monotonic() - before_s, time.process_time() - cpu_before_s
    failed = [s.error or "no token came" for s in streams if s.error or not s.token_times_s]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(streams)} streams failed: {failed[0]}")
    return LoadResult(tuple(streams), wall_s, cpu_s)


def run_load(
    url: str,
    model: str,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    deadline_s: float = DEFAULT_DEADLINE_S,
) -> LoadResult:
    """Run one greedy stream per prompt, all at once, ignoring end-of-text."""
    bodies = [completion_body(model, prompt, max_tokens) for prompt in prompts]
    return run_bodies(url, bodies, deadline_s)
