"""A rank's engine as ingresses see it: calls in, events out on the stream of whoever called.

Knows no Ray: the Serve shell forwards to it. Lives on one event loop; only `_deliver` is called on
the engine's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cluster.deadline import Deadline
from cluster.errors import NotReadyError
from cluster.tls import TlsFiles
from trinity_serve.api.event_codec import RankState
from trinity_serve.api.event_stream import EventSender, StreamAddress
from trinity_serve.engine.engine import Engine, Key
from trinity_serve.engine.request import GenerationRequest, TokenEvent
from trinity_serve.engine.thread import EngineThread

STOP_TIMEOUT_S = 5.0
READY_POLL_S = 0.05


@dataclass(slots=True)
class _Route:
    """Where the events of one open choice go, and who waits for its end."""

    attempt: int
    address: StreamAddress
    ended: asyncio.Future[None]


class RankHost:
    """Owns the engine's thread and one event stream per ingress.

    `missing` says, thread-safe, why the model could not compute now; empty when it can.
    """

    def __init__(
        self,
        rank: str,
        engine: Engine,
        missing: Callable[[], list[str]],
        fingerprint: str = "",
        tls: TlsFiles | None = None,
    ) -> None:
        self._rank = rank
        self._tls = tls
        self._fingerprint = fingerprint
        self._missing = missing
        self._was_ready = False
        self._loop = asyncio.get_running_loop()
        self._routes: dict[Key, _Route] = {}
        self._senders: dict[StreamAddress, EventSender] = {}
        self._thread = EngineThread(engine, self._deliver)
        self._thread.start()

    async def generate(self, request: GenerationRequest, address: StreamAddress) -> None:
        """Run one choice; return when its last event is on the way.

        Raises `OverloadedError` and `NotReadyError` before any event. Cancelling frees all it held.
        """
        self._check_was_ready()
        route = _Route(request.attempt, address, self._loop.create_future())
        self._sender(address)
        self._routes[request.key] = route
        try:
            self._thread.submit(request)
            await route.ended
        finally:
            if self._routes.get(request.key) is route:
                del self._routes[request.key]
            if not route.ended.done() or route.ended.cancelled():
                self._thread.cancel(request.key, request.attempt)

    def _check_was_ready(self) -> None:
        """Refuse until all that the model needs has been there once; later losses are waited out.

        Raises `NotReadyError` with what is missing.
        """
        if not self._was_ready and (reason := self.not_ready()):
            raise NotReadyError(reason)
        self._was_ready = True

    async def until_ready(self) -> None:
        """Return once requests would make progress."""
        while self.not_ready():
            await asyncio.sleep(READY_POLL_S)
        self._was_ready = True

    def attach(self, addresses: Iterable[StreamAddress]) -> None:
        """Hold a stream to each of these ingresses, so that it knows of this rank before a call."""
        for address in addresses:
            self._sender(address)

    def state(self) -> RankState:
        """Return what this rank says of itself."""
        return RankState(self._thread.stats(), self.not_ready(), self._fingerprint)

    def not_ready(self) -> str:
        """Return why requests would make no progress, or an empty text."""
        try:
            self._thread.check_ready()
        except NotReadyError as error:
            return error.reason
        return "; ".join(self._missing())

    def check_alive(self) -> None:
        """Raise `NotReadyError` when the engine's thread is gone or makes no turn."""
        self._thread.check_ready()

    async def close(self) -> None:
        """End every open choice, then the engine's thread and the streams."""
        deadline = Deadline.after(STOP_TIMEOUT_S)
        await self._loop.run_in_executor(None, self._thread.stop, deadline)
        for sender in list(self._senders.values()):
            await sender.close()

    def _sender(self, address: StreamAddress) -> EventSender:
        if address not in self._senders:
            self._senders[address] = EventSender(
                address, self._rank, self.state, lambda: self._lost(address), self._tls
            )
        return self._senders[address]

    def _lost(self, address: StreamAddress) -> None:
        """Drop everything that an ingress asked for which has gone away."""
        self._senders.pop(address, None)
        for key, route in list(self._routes.items()):
            if route.address == address:
                self._thread.cancel(key, route.attempt)

    def _deliver(self, events: list[TokenEvent]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hand_on, events)

    def _hand_on(self, events: list[TokenEvent]) -> None:
        for event in events:
            route = self._routes.get((event.request_id, event.choice))
            if route is None or route.attempt != event.attempt:
                continue
            if (sender := self._senders.get(route.address)) is not None:
                sender.send([event])
            if event.finish is not None and not route.ended.done():
                route.ended.set_result(None)
