"""`EngineClient` over ranks in other processes: one call per choice out, events back on a stream.

Knows how a choice survives its rank (see `api.replay`), not how a rank is called: `Ranks` does.
Everything here runs on one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import suppress

from cluster.errors import (
    InvalidRequestError,
    LinkLostError,
    NotReadyError,
    OverloadedError,
    TrinityError,
)
from trinity_serve.api.event_codec import RankState
from trinity_serve.api.ranks import RankStatus
from trinity_serve.api.replay import ChoiceReplay, Verdict
from trinity_serve.engine.request import EngineStats, GenerationRequest, TokenEvent
from trinity_serve.rank_attempt import Attempt, RankCall, Ranks, Watcher

MAX_MOVING = 8
"""Choices that move off leaving ranks at a time: each is a prompt to compute again."""
REFUSALS = (InvalidRequestError, NotReadyError, OverloadedError)
TICK_S = 0.25
MOVE_TIMEOUT_S = 30.0
STATE_FRESH_S = 3.0


class RankClient:
    """An `EngineClient` and the `StreamListener` of its ingress."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._attempts: dict[tuple[str, int, int], Attempt] = {}
        self._connected: set[str] = set()
        self._states: dict[str, tuple[float, RankState]] = {}
        self._moving = asyncio.Semaphore(MAX_MOVING)
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticker = self._spawn(self._tick())
        self.num_replays = 0

    @property
    def fingerprint(self) -> str | None:
        """Return the ranks' own; they refuse shards of another. None before one has spoken."""
        return next((state.fingerprint for _, state in self._states.values()), None) or None

    async def close(self) -> None:
        """End the background work; open choices have to be closed by their owners."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[TokenEvent]]:
        """Submit one choice and iterate over its events. See `EngineClient.generate`."""
        choice = ChoiceReplay(request)
        while True:
            attempt = Attempt(choice.request, choice)
            async for events in self._run(attempt):
                yield events
            if choice.finished:
                return
            await asyncio.sleep(choice.pause_s)
            choice.next_attempt()
            self.num_replays += 1

    async def _run(self, attempt: Attempt) -> AsyncIterator[list[TokenEvent]]:
        """Iterate over the events of one attempt until the choice ends or has to be replayed."""
        loop = asyncio.get_running_loop()
        self._attempts[attempt.key] = attempt
        watcher = Watcher(loop, attempt, attempt.choice.refused_by, self._routed, self._leaving)
        call = self._ranks.call(attempt.choice.request, watcher)
        waiter = self._spawn(self._await_call(call, attempt))
        try:
            async for events in self._events(attempt):
                yield events
        finally:
            del self._attempts[attempt.key]
            waiter.cancel()
            if not attempt.returned:
                call.cancel()

    async def _events(self, attempt: Attempt) -> AsyncIterator[list[TokenEvent]]:
        choice = attempt.choice
        while True:
            await attempt.wake.wait()
            attempt.wake.clear()
            if attempt.inbox and (refusal := _refusal_of(attempt)):
                self._refused(attempt, refusal)
                return
            arrived = [choice.accept(attempt.inbox.popleft()) for _ in range(len(attempt.inbox))]
            if fresh := [event for event in arrived if event is not None]:
                attempt.resumed.set()
                yield fresh
            await self._judge_call(attempt)
            verdict = choice.verdict(time.monotonic())
            if choice.finished or verdict is Verdict.REPLAY:
                return
            if verdict is Verdict.GIVE_UP:
                raise LinkLostError(attempt.rank or "every rank", attempt.last_problem)

    async def _judge_call(self, attempt: Attempt) -> None:
        """Let the end of the unary call count: it says what happened, never that all is done."""
        error, attempt.error = attempt.error, None
        if error is None or attempt.choice.finished:
            return
        if isinstance(error, LinkLostError):
            attempt.last_problem = str(error)
            attempt.choice.attempt_lost()
        elif isinstance(error, OverloadedError | NotReadyError) and attempt.choice.is_taken:
            attempt.choice.attempt_left()
            await asyncio.sleep(TICK_S)
        else:
            self._refused(attempt, error)

    def _refused(self, attempt: Attempt, error: TrinityError) -> None:
        """Have another rank asked when this one has no room for a choice, or raise the error."""
        full = isinstance(error, OverloadedError)
        if not full or not attempt.choice.refused(attempt.rank, self._connected):
            raise error

    async def _await_call(self, call: RankCall, attempt: Attempt) -> None:
        try:
            await call.result()
        except TrinityError as error:
            attempt.error = error
        attempt.returned = True
        attempt.choice.quiet(time.monotonic())
        attempt.wake.set()

    async def _tick(self) -> None:
        """Wake attempts from which nothing comes, so that their time can run out."""
        while True:
            await asyncio.sleep(TICK_S)
            for attempt in self._attempts.values():
                attempt.wake.set()

    def _routed(self, attempt: Attempt, rank: str) -> None:
        attempt.rank = rank
        if rank not in self._connected:
            attempt.choice.quiet(time.monotonic())

    def _leaving(self, attempt: Attempt) -> None:
        if attempt.key in self._attempts:
            self._spawn(self._move(attempt))

    async def _move(self, attempt: Attempt) -> None:
        """Leave the attempt's rank, a few choices at a time; done when events come again."""
        async with self._moving:
            if self._attempts.get(attempt.key) is not attempt:
                return
            attempt.choice.attempt_left()
            attempt.wake.set()
            request = attempt.choice.request
            following = (request.request_id, request.choice, request.attempt + 1)
            with suppress(TimeoutError):
                async with asyncio.timeout(MOVE_TIMEOUT_S):
                    await self._resumed(attempt, following)

    async def _resumed(self, attempt: Attempt, following: tuple[str, int, int]) -> None:
        while self._attempts.get(attempt.key) is attempt:
            await asyncio.sleep(0.01)
        if (next_attempt := self._attempts.get(following)) is not None:
            await next_attempt.resumed.wait()

    def on_events(self, rank: str, events: list[TokenEvent]) -> None:
        """Hand events to their attempts; those of attempts given up are dropped here."""
        for event in events:
            attempt = self._attempts.get((event.request_id, event.choice, event.attempt))
            if attempt is not None:
                attempt.inbox.append(event)
                attempt.choice.spoke(time.monotonic())
                attempt.wake.set()

    def on_state(self, rank: str, state: RankState) -> None:
        """Keep what `rank` said of itself."""
        self._states[rank] = (time.monotonic(), state)

    def on_connected(self, rank: str, connected: bool) -> None:
        """Let the calls on `rank` know whether events can come."""
        (self._connected.add if connected else self._connected.discard)(rank)
        if not connected:
            self._states.pop(rank, None)
        for attempt in self._attempts.values():
            if attempt.rank != rank:
                continue
            if connected and not attempt.returned:
                attempt.choice.heard()
            else:
                attempt.choice.quiet(time.monotonic())

    async def stats(self) -> EngineStats:
        """Return the sum over the ranks that speak to this ingress."""
        total = EngineStats()
        for state in self._fresh_states():
            _add(total, state.stats)
        return total

    def ranks(self) -> list[RankStatus]:
        """Return the ranks that speak to this ingress, by name."""
        oldest_s = time.monotonic() - STATE_FRESH_S
        return [
            RankStatus.of(rank, state.stats, state.not_ready)
            for rank, (said_at_s, state) in sorted(self._states.items())
            if said_at_s >= oldest_s
        ]

    async def ready(self) -> None:
        """Return when some rank can serve; raise `NotReadyError` with the reason when none can."""
        states = self._fresh_states()
        if not states:
            raise NotReadyError("no attention rank is connected")
        if all(state.not_ready for state in states):
            raise NotReadyError(states[0].not_ready)

    def _fresh_states(self) -> list[RankState]:
        oldest_s = time.monotonic() - STATE_FRESH_S
        return [state for said_at_s, state in self._states.values() if said_at_s >= oldest_s]

    def _spawn(self, coroutine: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(coroutine)
        assert isinstance(task, asyncio.Task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _refusal_of(attempt: Attempt) -> TrinityError | None:
    """Return why the rank did not begin; a choice that one has taken before ends by an event."""
    event = attempt.inbox[0]
    first = not attempt.choice.is_taken and event.index == 0 and event.token_id is None
    return event.error if first and isinstance(event.error, REFUSALS) else None


def _add(total: EngineStats, stats: EngineStats) -> None:
    total.num_running += stats.num_running
    total.num_waiting += stats.num_waiting
    total.num_waiting_tokens += stats.num_waiting_tokens
    total.kv_usage = max(total.kv_usage, stats.kv_usage)
    total.num_steps += stats.num_steps
    total.num_preemptions += stats.num_preemptions
    total.prompt_tokens += stats.prompt_tokens
    total.generation_tokens += stats.generation_tokens
    total.last_step_at_s = max(total.last_step_at_s, stats.last_step_at_s)
    for name, value in stats.extra.items():
        total.extra[name] = total.extra.get(name, 0.0) + value
    for totals, counts in ((total.times, stats.times), (total.by_shard, stats.by_shard)):
        for name, numbers in counts.items():
            so_far = totals.get(name) or [0] * len(numbers)
            totals[name] = [a + b for a, b in zip(so_far, numbers, strict=True)]
