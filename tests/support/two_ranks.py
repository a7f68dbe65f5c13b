"""A whole server in one process over two ranks, of which either can be lost at a given token.

Real engines on threads of their own, real event streams, the client that replays; Ray alone is not
there: a call is a task on the loop.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from cluster.errors import LinkLostError
from tests.support.serving import config_for, open_serving
from trinity_serve.api.event_codec import RankState
from trinity_serve.api.event_stream import EventServer, StreamAddress
from trinity_serve.api.limits import ApiLimits
from trinity_serve.api.server import create_app
from trinity_serve.api.service import ModelService
from trinity_serve.engine.request import GenerationRequest, TokenEvent
from trinity_serve.rank_attempt import CallWatcher
from trinity_serve.rank_host import RankHost
from trinity_serve.ray_client import RankClient

Key = tuple[str, int, int]
CUT = re.compile(r"-cut-(\d+)-")
"""A request of this id loses its rank after so many tokens, once."""


def cut_id(after: int) -> str:
    """Return the `request_id` of a chat that shall lose its rank after so many tokens."""
    return f"cut-{after}-"


class HostCall:
    """A call that runs as a task, until its rank is lost."""

    def __init__(self, work: Awaitable[None], rank: str) -> None:
        self._rank = rank
        self._lost = False
        self._task = asyncio.ensure_future(work)

    async def result(self) -> None:
        """See `RankCall.result`."""
        await asyncio.wait([self._task])
        if self._lost:
            raise LinkLostError(self._rank, "killed by the test")
        if not self._task.cancelled():
            self._task.result()

    def cancel(self) -> None:
        """See `RankCall.cancel`."""
        self._task.cancel()

    def lose(self) -> None:
        """Let the rank die."""
        self._lost = True
        self._task.cancel()


class TwoRanks:
    """Sends each attempt to the rank that the one before was not on, and loses them as asked."""

    def __init__(self) -> None:
        self.hosts: list[RankHost] = []
        self.address: StreamAddress | None = None
        self.client = RankClient(self)
        self.num_lost = 0
        self._calls: dict[Key, HostCall] = {}

    def call(self, request: GenerationRequest, watcher: CallWatcher) -> HostCall:
        """See `Ranks.call`."""
        assert self.address is not None
        number = request.attempt % len(self.hosts)
        call = HostCall(self.hosts[number].generate(request, self.address), f"rank {number}")
        self._calls[request.request_id, request.choice, request.attempt] = call
        watcher.routed(f"rank {number}")
        return call

    def on_events(self, rank: str, events: list[TokenEvent]) -> None:
        """Hand events on; those after the cut are lost with their rank."""
        for event in events:
            cut = CUT.search(event.request_id)
            if cut is None or event.attempt or event.index < int(cut[1]):
                self.client.on_events(rank, [event])
                continue
            call = self._calls.pop((event.request_id, event.choice, 0), None)
            if call is not None:
                self.num_lost += 1
                call.lose()

    def on_state(self, rank: str, state: RankState) -> None:
        """Hand a state on."""
        self.client.on_state(rank, state)

    def on_connected(self, rank: str, connected: bool) -> None:
        """Hand the news on."""
        self.client.on_connected(rank, connected)


@asynccontextmanager
async def two_ranks(
    checkpoint: Path, service: ModelService, folder: Path
) -> AsyncIterator[tuple[TwoRanks, httpx.AsyncClient]]:
    """Yield the ranks and a client of the REST face over them."""
    ranks = TwoRanks()
    server = EventServer("secret", ranks)
    ranks.address = await server.start(str(folder / "events"), "127.0.0.1", "127.0.0.1")
    for number in range(2):
        engine = open_serving(config_for(checkpoint)).engine
        ranks.hosts.append(RankHost(f"rank {number}", engine, list))
    transport = httpx.ASGITransport(create_app(ranks.client, service, ApiLimits()))
    try:
        for host in ranks.hosts:
            host.attach([ranks.address])
            await host.until_ready()
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield ranks, http
    finally:
        for host in ranks.hosts:
            await host.close()
        await ranks.client.close()
        await server.close()
