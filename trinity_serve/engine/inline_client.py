"""`EngineClient` over an engine in this process: events hop from its thread to the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from cluster.deadline import Deadline
from cluster.errors import InvalidRequestError, NotReadyError, OverloadedError
from trinity_serve.engine.engine import Engine, Key
from trinity_serve.engine.request import EngineStats, GenerationRequest, TokenEvent
from trinity_serve.engine.thread import EngineThread

_REFUSALS = (InvalidRequestError, NotReadyError, OverloadedError)


class InlineClient:
    """Owns the engine's thread. Used on one event loop: the one that `start` was called on.

    `check_runner` raises `NotReadyError` while the model cannot compute (experts missing, say).
    """

    def __init__(
        self,
        engine: Engine,
        check_runner: Callable[[], None] = lambda: None,
        stall_after_s: float = 2.5,
        fingerprint: str | None = None,
    ) -> None:
        self.fingerprint = fingerprint
        self._thread = EngineThread(engine, self._deliver, stall_after_s)
        self._check_runner = check_runner
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: dict[Key, _Stream] = {}

    async def start(self) -> None:
        """Start the engine's thread and bind it to the running event loop; once."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self, deadline: Deadline) -> bool:
        """Cancel what is open and end the thread; return whether it ended in time."""
        return await asyncio.to_thread(self._thread.stop, deadline)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[TokenEvent], None]:
        """See `EngineClient.generate`."""
        if request.key in self._streams:
            raise InvalidRequestError(
                "request_id", f"A request with id {request.request_id!r} is running already."
            )
        stream = self._streams[request.key] = _Stream(request.attempt)
        try:
            self._thread.submit(request)
            events = await stream.next_events()
            first = events[0]
            if first.token_id is None and isinstance(first.error, _REFUSALS):
                raise first.error
            while not stream.ended:
                yield events
                events = await stream.next_events()
            yield events
        finally:
            del self._streams[request.key]
            if not stream.ended:
                self._thread.cancel(request.key, request.attempt)

    async def stats(self) -> EngineStats:
        """Return the snapshot taken after the engine's last step."""
        return self._thread.stats()

    async def ready(self) -> None:
        """Raise `NotReadyError` unless the thread makes steps and the model can compute."""
        self._thread.check_ready()
        self._check_runner()

    def _deliver(self, events: list[TokenEvent]) -> None:
        """Called on the engine's thread: one hop to the loop for all events of a step."""
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._dispatch, events)

    def _dispatch(self, events: list[TokenEvent]) -> None:
        for event in events:
            stream = self._streams.get((event.request_id, event.choice))
            if stream is not None and stream.attempt == event.attempt:
                stream.put(event)


class _Stream:
    """Events of one request on their way to its consumer; both ends on the event loop."""

    __slots__ = ("_arrived", "_events", "attempt", "ended")

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        self.ended = False
        """Whether the last event has been handed out."""
        self._events: list[TokenEvent] = []
        self._arrived = asyncio.Event()

    def put(self, event: TokenEvent) -> None:
        self._events.append(event)
        self._arrived.set()

    async def next_events(self) -> list[TokenEvent]:
        """Wait for events; bounded by the engine, which ends every request."""
        await self._arrived.wait()
        self._arrived.clear()
        events, self._events = self._events, []
        self.ended = events[-1].finish is not None
        return events
