"""A small load generator over raw HTTP/1.1: cheap enough to share the machine with the server.

Every stream is one `POST /v1/completions` with token ids, streamed. Loops are bounded in number and
time.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import orjson


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
    cpu_s: float
    """The generator's own CPU time."""

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens after each stream's first, over the time from the last first token on.

        The time to first token of every stream is excluded: only while all streams decode is the
        number of streams what it says.
        """
        start_s = max(stream.token_times_s[0] for stream in self.streams)
        end_s = max(stream.token_times_s[-1] for stream in self.streams)
        tokens = sum(t > start_s for stream in self.streams for t in stream.token_times_s)
        return tokens / (end_s - start_s)

    @property
    def gaps_s(self) -> list[float]:
        """All times between tokens, ascending."""
        return sorted(gap for stream in self.streams for gap in stream.gaps_s)


async def run_stream(url: str, body: dict[str, object], deadline_s: float) -> StreamResult:
    """Run one streamed completion; errors end up in the result."""
    result = StreamResult(time.monotonic())
    try:
        async with asyncio.timeout(deadline_s):
            await _stream_into(result, url, body)
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        result.error = f"{type(error).__name__}: {error}"
    return result


async def _stream_into(result: StreamResult, url: str, body: dict[str, object]) -> None:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 20)
    payload = json.dumps({**body, "stream": True, "return_token_ids": True}).encode()
    writer.write(
        f"POST /v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
        f"Connection: close\r\n\r\n".encode()
        + payload
    )
    try:
        status = await reader.readline()
        while (await reader.readline()) not in (b"\r\n", b""):
            pass
        if b" 200 " not in status:
            result.error = f"{status.decode().strip()}: {(await reader.read(2000)).decode()}"
            return
        async for line in reader:
            if line.startswith(b"data: ") and not _take(result, line[6:].strip()):
                return
    finally:
        writer.close()


def _take(result: StreamResult, data: bytes) -> bool:
    """Take one event; return whether more may come."""
    if data == b"[DONE]":
        return False
    event = orjson.loads(data)
    if "error" in event:
        result.error = event["error"]["message"]
        return False
    for choice in event["choices"]:
        ids = choice.get("token_ids") or []
        result.token_ids += ids
        result.token_times_s += [time.monotonic()] * max(len(ids), 1 if choice["text"] else 0)
        result.finish_reason = choice["finish_reason"] or result.finish_reason
    return True


def run_load(
    url: str, model: str, prompts: Sequence[Sequence[int]], max_tokens: int, deadline_s: float = 300
) -> LoadResult:
    """Run one greedy stream per prompt, all at once, ignoring end-of-text."""

    async def run() -> list[StreamResult]:
        bodies = [
            {
                "model": model,
                "prompt": list(prompt),
                "max_tokens": max_tokens,
                "temperature": 0,
                "ignore_eos": True,
            }
            for prompt in prompts
        ]
        return await asyncio.gather(*(run_stream(url, body, deadline_s) for body in bodies))

    before_s = time.process_time()
    streams = asyncio.run(run())
    failed = [stream.error for stream in streams if stream.error]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(streams)} streams failed: {failed[0]}")
    return LoadResult(tuple(streams), time.process_time() - before_s)
