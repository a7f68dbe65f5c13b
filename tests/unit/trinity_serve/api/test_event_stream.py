"""The stream between a rank and an ingress, over real sockets on this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from trinity_serve.api.event_codec import RankState
from trinity_serve.api.event_stream import EventSender, EventServer, StreamAddress
from trinity_serve.engine.request import EngineStats, TokenEvent


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


class Ingress:
    """Notes what ranks say."""

    def __init__(self) -> None:
        self.events: list[TokenEvent] = []
        self.messages = 0
        self.states: list[RankState] = []
        self.connected: list[tuple[str, bool]] = []

    def on_events(self, rank: str, events: list[TokenEvent]) -> None:
        self.messages += 1
        self.events += events

    def on_state(self, rank: str, state: RankState) -> None:
        self.states.append(state)

    def on_connected(self, rank: str, connected: bool) -> None:
        self.connected.append((rank, connected))


@pytest.fixture
def ingress() -> Ingress:
    return Ingress()


@pytest.fixture
async def server(ingress: Ingress) -> AsyncIterator[EventServer]:
    server = EventServer("secret", ingress)
    yield server
    await server.close()


async def started(server: EventServer, tmp_path: Path) -> StreamAddress:
    return await server.start(str(tmp_path / "events"), "127.0.0.1", "127.0.0.1")


def sender(address: StreamAddress, on_lost: Callable[[], None] = lambda: None) -> EventSender:
    return EventSender(address, "rank 0", lambda: RankState(EngineStats(), ""), on_lost)


def event(index: int) -> TokenEvent:
    return TokenEvent("r", 0, 0, index, index)


@pytest.mark.parametrize("same_file_system", [True, False])
async def test_what_is_sent_in_one_turn_arrives_in_order_in_one_message(
    ingress: Ingress, server: EventServer, tmp_path: Path, same_file_system: bool
) -> None:
    address = await started(server, tmp_path)
    if not same_file_system:
        address = replace(address, unix_path=str(tmp_path / "elsewhere"))
    rank = sender(address)
    await eventually(lambda: ("rank 0", True) in ingress.connected)
    rank.send([event(0)])
    rank.send([event(1), event(2)])
    await eventually(lambda: len(ingress.events) == 3)
    assert [each.index for each in ingress.events] == [0, 1, 2]
    assert ingress.messages == 1
    await rank.close()
    await eventually(lambda: ingress.connected[-1] == ("rank 0", False))


async def test_the_late_end_of_an_old_stream_does_not_hide_the_new_one(
    ingress: Ingress, server: EventServer, tmp_path: Path
) -> None:
    address = await started(server, tmp_path)
    old, new = sender(address), sender(address)
    await eventually(lambda: ingress.connected == [("rank 0", True)] * 2)
    await old.close()
    new.send([event(0)])
    await eventually(lambda: len(ingress.events) == 1)
    assert ("rank 0", False) not in ingress.connected
    await new.close()
    await eventually(lambda: ingress.connected[-1] == ("rank 0", False))


async def test_a_rank_says_how_it_is_without_being_asked(
    ingress: Ingress, server: EventServer, tmp_path: Path
) -> None:
    rank = sender(await started(server, tmp_path))
    await eventually(lambda: len(ingress.states) >= 2)
    await rank.close()


async def test_a_wrong_token_is_refused(
    ingress: Ingress, server: EventServer, tmp_path: Path
) -> None:
    address = await started(server, tmp_path)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(b"\x10\x00\x00\x00" + b'["guess","rank"]')
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()
    assert ingress.connected == []


async def test_an_ingress_that_stays_away_is_reported_lost(tmp_path: Path) -> None:
    lost = asyncio.Event()
    nowhere = StreamAddress(str(tmp_path / "none"), "127.0.0.1", 1, "secret")
    rank = sender(nowhere, lost.set)
    async with asyncio.timeout(10):
        await lost.wait()
    await rank.close()


async def test_an_ingress_that_refuses_after_it_has_connected_is_reported_lost(
    ingress: Ingress, server: EventServer, tmp_path: Path
) -> None:
    address = replace(await started(server, tmp_path), token="of another ingress")
    lost = asyncio.Event()
    rank = sender(address, lost.set)
    async with asyncio.timeout(15):
        while not lost.is_set():
            rank.send([event(0)])
            await asyncio.sleep(0.01)
    await rank.close()
    assert ingress.connected == []


def test_an_ingress_that_dies_between_two_messages_is_reported_lost_on_serve_s_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A state before each message: the second write of a turn meets what the first one closed.
    monkeypatch.setattr("trinity_serve.api.event_stream.PING_INTERVAL_S", 0.001)
    uvloop.run(die_under_a_rank(tmp_path / "events"))


async def die_under_a_rank(path: Path) -> None:
    streams: list[asyncio.StreamWriter] = []
    server = await asyncio.start_unix_server(lambda _, writer: streams.append(writer), path)
    lost = asyncio.Event()
    rank = sender(StreamAddress(str(path), "127.0.0.1", 1, "secret"), lost.set)
    async with asyncio.timeout(15):
        while not lost.is_set():
            rank.send([event(0)])
            await asyncio.sleep(0.01)
            if streams:
                server.close()
                streams.pop().transport.abort()
    await rank.close()


async def test_a_closed_server_leaves_no_socket_file(server: EventServer, tmp_path: Path) -> None:
    await started(server, tmp_path)
    await server.close()
    assert list(tmp_path.iterdir()) == []


def test_an_address_survives_as_text() -> None:
    address = StreamAddress("/p", "10.0.0.1", 7, "secret")
    assert StreamAddress.from_text(address.to_text()) == address
