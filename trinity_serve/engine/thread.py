"""The engine on a thread of its own, with an inbox, and the border at which every request ends.

Whatever happens behind it — a forward pass that raises, hangs, or a loop that is stopped — each
accepted request gets exactly one last event, because this class keeps the list of open ones.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from cluster.deadline import Deadline
from cluster.errors import (
    CancelledRequestError,
    EngineFailedError,
    NotReadyError,
    OverloadedError,
    TrinityError,
)
from trinity_serve.engine.engine import Engine, Key
from trinity_serve.engine.events import refusal
from trinity_serve.engine.request import EngineStats, FinishReason, GenerationRequest, TokenEvent
from trinity_serve.engine.scheduler import RETRY_AFTER_S

logger = logging.getLogger(__name__)

Deliver = Callable[[list[TokenEvent]], None]

IDLE_WAIT_S = 0.1
"""How long an idle loop waits at most before it shows that it is alive."""
FAILURES_UNTIL_NOT_READY = 3
"""One unknown error may be one request's; so many in a row are the engine's own."""


class EngineThread:
    """Owns an engine. `submit`, `cancel`, `stats`, `check_ready` and `stop` are thread-safe.

    `deliver` gets the events, one call per step, on the engine's thread; only when the thread
    hangs beyond `stop`'s deadline are the last events delivered by the caller of `stop`. It must
    neither block nor raise.

    An unexpected exception of the loop ends all open requests with `EngineFailedError`, is logged,
    and the loop goes on with fresh pools. After three in a row without a good step between, and
    while neither an iteration has ended nor its forward pass has shown that it goes on for
    `stall_after_s`, `check_ready` raises: a long step is progress, a hung one is not.
    """

    def __init__(
        self,
        engine: Engine,
        deliver: Deliver,
        stall_after_s: float = 2.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._deliver = deliver
        self._stall_after_s = stall_after_s
        self._clock = clock
        self._inbox: queue.SimpleQueue[GenerationRequest | tuple[Key, int | None]]
        self._inbox = queue.SimpleQueue()
        # Guards _open and _closed; held for some microseconds per step, never while computing.
        self._lock = threading.Lock()
        self._open: dict[Key, GenerationRequest] = {}
        self._closed = False
        self._stopping = threading.Event()
        self._num_failures = 0
        self._last_turn_at_s = clock()
        self._stats = engine.stats()
        self._thread = threading.Thread(target=self._run, name="trinity-engine", daemon=True)

    def start(self) -> None:
        """Start the thread; once."""
        self._last_turn_at_s = self._clock()
        self._thread.start()

    def submit(self, request: GenerationRequest) -> None:
        """Hand over a request; what the engine itself refuses ends by an `ERROR` event.

        Raises `NotReadyError` when stopped and `OverloadedError` when more requests are open than
        the engine has seats and queue for.
        """
        config = self._engine.config
        limit = config.max_waiting + config.max_num_seqs
        with self._lock:
            if self._closed or self._stopping.is_set():
                raise NotReadyError("the engine is stopped")
            open_one = self._open.get(request.key)
            if open_one is not None and open_one.attempt >= request.attempt:
                return
            if open_one is None and len(self._open) >= limit:
                raise OverloadedError("engine queue", config.max_waiting, RETRY_AFTER_S)
            self._open[request.key] = request
            self._inbox.put(request)
        self._engine.runner.wake()

    def cancel(self, key: Key, attempt: int | None = None) -> None:
        """Ask for a request's end; does nothing when it is not open (any more)."""
        self._inbox.put((key, attempt))
        self._engine.runner.wake()

    def stats(self) -> EngineStats:
        """Return the snapshot taken after the last step."""
        return self._stats

    @property
    def last_turn_at_s(self) -> float:
        """When the loop last came round, idle or not, on the monotonic clock."""
        return self._last_turn_at_s

    def check_ready(self) -> None:
        """Raise `NotReadyError` with the reason when requests would not make progress."""
        if self._closed or self._stopping.is_set() or not self._thread.is_alive():
            raise NotReadyError("the engine is not running")
        if self._num_failures >= FAILURES_UNTIL_NOT_READY:
            raise NotReadyError(f"the engine failed {self._num_failures} times in a row")
        last_sign_at_s = max(self._last_turn_at_s, self._engine.runner.last_sign_at_s())
        silent_s = self._clock() - last_sign_at_s
        if silent_s > self._stall_after_s:
            raise NotReadyError(f"the engine has shown no progress for {silent_s:.1f} s")

    def stop(self, deadline: Deadline) -> bool:
        """End every open request with `CANCELLED`; return whether the thread ended in time.

        Blocks until the thread has ended or the deadline is over; may be called again.
        """
        self._stopping.set()
        self._engine.runner.wake()
        if self._thread.is_alive():
            self._thread.join(deadline.remaining_s())
        ended = not self._thread.is_alive()
        if not ended:
            logger.error("the engine's thread did not end within %g s", deadline.budget_s)
        self._close()
        return ended

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._turn()
        finally:
            self._close()
            self._engine.close()

    def _turn(self) -> None:
        """One iteration: take what came in, then a step, or a wait when there is nothing to do."""
        try:
            events, failed = self._empty_inbox(), False
            if self._engine.has_work:
                events += self._engine.step(self._clock())
                self._num_failures = 0
            elif not events:
                self._engine.runner.wait(IDLE_WAIT_S)
        except Exception as error:  # the border of the thread: nothing may end it
            logger.exception("the engine failed; every open request ends")
            self._num_failures += 1
            failure = EngineFailedError(f"{type(error).__name__}: {error}")
            events, failed = self._fail_open(failure), True
        self._stats = self._engine.stats()
        self._last_turn_at_s = self._clock()
        self._pass_on(events)
        if failed:
            # A runner that fails at once must not turn this loop into a busy one.
            self._stopping.wait(IDLE_WAIT_S)

    def _empty_inbox(self) -> list[TokenEvent]:
        """Give the engine what came in; return the ends of requests that it refused."""
        events = []
        while not self._inbox.empty():
            item = self._inbox.get_nowait()
            if isinstance(item, GenerationRequest):
                try:
                    self._engine.submit(item)
                except TrinityError as error:
                    events.append(refusal(item, error))
            else:
                self._engine.cancel(*item)
        return events

    def _fail_open(self, error: TrinityError) -> list[TokenEvent]:
        """Return the end of everything open, also of what the engine never got to see."""
        self._engine.reset(error)
        with self._lock:
            while not self._inbox.empty():
                self._inbox.get_nowait()
            return [refusal(request, error) for request in self._open.values()]

    def _pass_on(self, events: list[TokenEvent]) -> None:
        """Deliver events of open requests and strike off those that end."""
        with self._lock:
            if self._closed:
                return
            current = [event for event in events if self._is_open(event)]
            for event in current:
                if event.finish is not None:
                    del self._open[event.request_id, event.choice]
        self._deliver_logged(current)

    def _is_open(self, event: TokenEvent) -> bool:
        request = self._open.get((event.request_id, event.choice))
        return request is not None and request.attempt == event.attempt

    def _close(self) -> None:
        """Refuse what comes and cancel what is open; the first call does it."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            requests = list(self._open.values())
            self._open.clear()
        self._deliver_logged([_cancellation(request) for request in requests])

    def _deliver_logged(self, events: list[TokenEvent]) -> None:
        if not events:
            return
        try:
            self._deliver(events)
        except Exception:  # the border to the callback: its fault must not stop other requests
            logger.exception("%d events could not be delivered", len(events))


def _cancellation(request: GenerationRequest) -> TokenEvent:
    return TokenEvent(
        request_id=request.request_id,
        choice=request.choice,
        attempt=request.attempt,
        index=len(request.emitted_ids),
        token_id=None,
        finish=FinishReason.CANCELLED,
        error=CancelledRequestError(request.request_id, "the engine was stopped"),
    )
