"""An ingress's event port under random and mutated messages: it hangs up, and serves others."""

from __future__ import annotations

import asyncio
import random
import struct
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from trinity_serve.api.event_codec import RankState, encode_events, encode_state
from trinity_serve.api.event_stream import EventServer, StreamAddress
from trinity_serve.engine.request import EngineStats, FinishReason, TokenEvent, TokenLogprobs

TOKEN = "secret"
DEADLINE_S = 10.0
WARM_UP, CONNECTIONS = 100, 300
MAX_GROWTH_BYTES = 200_000


class Listener:
    """Counts what is let through and keeps none of it."""

    def __init__(self) -> None:
        self.num_events = 0
        self.connected: set[str] = set()

    def on_events(self, rank: str, events: list[TokenEvent]) -> None:
        self.num_events += len(events)

    def on_state(self, rank: str, state: RankState) -> None:
        pass

    def on_connected(self, rank: str, connected: bool) -> None:
        (self.connected.add if connected else self.connected.discard)(rank)


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
async def address(listener: Listener, tmp_path: Path) -> AsyncIterator[StreamAddress]:
    server = EventServer(TOKEN, listener)
    yield await server.start(str(tmp_path / "events"), "127.0.0.1", "127.0.0.1")
    await server.close()


def framed(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


HELLO = framed(f'["{TOKEN}","fuzz"]'.encode())
EVENTS = [
    TokenEvent("r", 0, 0, 0, 7, TokenLogprobs(-0.5, ((7, -0.5), (8, -1.0)), 1)),
    TokenEvent("r", 0, 0, 1, 8, finish=FinishReason.STOP, stop_token_id=8),
    TokenEvent("r", 0, 0, 2, None, finish=FinishReason.ERROR, error=ValueError("no")),
]
BODIES = [encode_events(EVENTS), encode_state(RankState(EngineStats(), "loading", "fp"))]


def said(numbers: random.Random) -> bytes:
    """Return what one connection sends."""
    parts = [HELLO] if numbers.random() < 0.8 else []
    for _ in range(numbers.randint(1, 5)):
        body = bytearray(numbers.choice(BODIES))
        draw = numbers.random()
        if draw < 0.2:
            parts.append(numbers.randbytes(numbers.randint(1, 500)))
        elif draw < 0.4:
            parts.append(framed(bytes(body[: numbers.randint(0, len(body))])))
        else:
            for _ in range(numbers.randint(0, 3)):
                body[numbers.randrange(len(body))] = numbers.randrange(256)
            parts.append(framed(bytes(body)))
    return b"".join(parts)


async def talk(address: StreamAddress, data: bytes) -> None:
    """Send `data` and wait until the port has hung up."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        async with asyncio.timeout(DEADLINE_S):
            with suppress(ConnectionError):
                writer.write(data)
                writer.write_eof()
                await writer.drain()
                assert await reader.read() == b""
    finally:
        writer.close()


async def test_whatever_comes_in_the_port_hangs_up_and_serves_the_next(
    address: StreamAddress, listener: Listener
) -> None:
    unhandled: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    numbers = random.Random(5)
    for _ in range(WARM_UP):
        await talk(address, said(numbers))
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(CONNECTIONS):
        await talk(address, said(numbers))
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert unhandled == []
    assert grown < MAX_GROWTH_BYTES
    assert listener.connected == set()
    seen = listener.num_events
    await talk(address, HELLO + framed(BODIES[0]))
    assert listener.num_events == seen + len(EVENTS)
