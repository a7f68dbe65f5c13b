"""A choice survives its rank: the client over ranks, with ranks that are told what to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from cluster.errors import (
    InvalidRequestError,
    LinkLostError,
    NotReadyError,
    OverloadedError,
    TrinityError,
)
from trinity_serve.api.event_codec import RankState
from trinity_serve.engine.request import (
    EngineStats,
    FinishReason,
    GenerationRequest,
    SamplingParams,
    TokenEvent,
)
from trinity_serve.rank_attempt import CallWatcher
from trinity_serve.ray_client import MAX_MOVING, RankClient


class FakeCall:
    """A call whose end the test decides."""

    def __init__(self, request: GenerationRequest, watcher: CallWatcher) -> None:
        self.request = request
        self.watcher = watcher
        self.cancelled = False
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def result(self) -> None:
        await self._end

    def cancel(self) -> None:
        self.cancelled = True

    def return_(self) -> None:
        self._end.set_result(None)

    def fail(self, error: TrinityError) -> None:
        self._end.set_exception(error)


class FakeRanks:
    """Keeps the calls it was given."""

    def __init__(self) -> None:
        self.calls: list[FakeCall] = []

    def call(self, request: GenerationRequest, watcher: CallWatcher) -> FakeCall:
        self.calls.append(FakeCall(request, watcher))
        return self.calls[-1]


class Bench:
    """A client, its fake ranks, and what came out of each choice."""

    def __init__(self) -> None:
        self.ranks = FakeRanks()
        self.client = RankClient(self.ranks)
        self.client.on_connected("a", True)
        self.client.on_connected("b", True)

    def start(self, number: int = 0) -> asyncio.Task[list[int]]:
        request = GenerationRequest(f"r{number}", 0, (1, 2), SamplingParams(max_tokens=4, seed=1))
        return asyncio.create_task(self._collect(request))

    async def _collect(self, request: GenerationRequest) -> list[int]:
        ids = []
        async for events in self.client.generate(request):
            ids += [event.token_id for event in events if event.token_id is not None]
        return ids

    async def call(self, number: int, rank: str = "a") -> FakeCall:
        """Return the call of this number once it is there, routed to `rank`."""
        await eventually(lambda: len(self.ranks.calls) > number)
        self.ranks.calls[number].watcher.routed(rank)
        return self.ranks.calls[number]

    def emit(self, call: FakeCall, *token_ids: int, end: bool = False) -> None:
        first = len(call.request.emitted_ids)
        for offset, token_id in enumerate(token_ids):
            finish = FinishReason.LENGTH if end and offset == len(token_ids) - 1 else None
            event = TokenEvent(
                call.request.request_id,
                call.request.choice,
                call.request.attempt,
                first + offset,
                token_id,
                finish=finish,
            )
            self.client.on_events("a", [event])


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.client.close()


async def test_a_choice_ends_by_its_last_event_not_by_the_return_of_the_call(bench: Bench) -> None:
    task = bench.start()
    call = await bench.call(0)
    bench.emit(call, 7)
    call.return_()
    await asyncio.sleep(0)
    assert not task.done()
    call.request = bench.ranks.calls[0].request
    bench.client.on_events("a", [TokenEvent("r0", 0, 0, 1, 8, finish=FinishReason.STOP)])
    assert await task == [7, 8]
    assert len(bench.ranks.calls) == 1


async def test_a_dead_rank_is_replaced_from_the_emitted_tokens(bench: Bench) -> None:
    task = bench.start()
    call = await bench.call(0)
    bench.emit(call, 7, 8)
    await eventually(lambda: bench.client.num_replays == 0 and not task.done())
    call.fail(LinkLostError("rank a", "killed"))
    again = await bench.call(1, "b")
    assert (again.request.attempt, again.request.emitted_ids) == (1, (7, 8))
    bench.emit(call, 7, 8, 9)  # the old rank wakes up late
    bench.emit(again, 9, 10, end=True)
    assert await task == [7, 8, 9, 10]
    assert bench.client.num_replays == 1


async def test_a_lost_stream_is_replayed_and_the_old_call_cancelled(bench: Bench) -> None:
    task = bench.start()
    call = await bench.call(0)
    bench.emit(call, 7)
    bench.client.on_connected("a", False)
    again = await bench.call(1, "b")
    assert call.cancelled
    bench.emit(again, 8, end=True)
    assert await task == [7, 8]


async def test_closing_the_iterator_cancels_the_call(bench: Bench) -> None:
    task = bench.start()
    call = await bench.call(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert call.cancelled


async def test_a_refused_request_raises_before_any_event(bench: Bench) -> None:
    task = bench.start()
    call = await bench.call(0)
    call.fail(NotReadyError("the engine is stopped"))
    with pytest.raises(NotReadyError):
        await task


async def test_an_invalid_request_raises_what_the_rank_found(bench: Bench) -> None:
    task = bench.start()
    await bench.call(0)
    error = InvalidRequestError("prompt", "too long")
    event = TokenEvent("r0", 0, 0, 0, None, finish=FinishReason.ERROR, error=error)
    bench.client.on_events("a", [event])
    with pytest.raises(InvalidRequestError, match="too long"):
        await task


async def test_an_overloaded_rank_does_not_end_a_replayed_choice(bench: Bench) -> None:
    task = bench.start()
    call = await bench.call(0)
    bench.emit(call, 7)
    call.fail(LinkLostError("rank a", "killed"))
    (await bench.call(1, "b")).fail(NotReadyError("starting"))
    third = await bench.call(2, "b")
    bench.emit(third, 8, end=True)
    assert await task == [7, 8]


async def test_a_rank_without_room_has_another_asked(bench: Bench) -> None:
    task = bench.start()
    (await bench.call(0)).fail(OverloadedError("engine queue", 8, 1.0))
    second = await bench.call(1, "b")
    assert second.watcher.refused_by == {"a"}
    bench.emit(second, 7, end=True)
    assert await task == [7]


async def test_a_choice_that_no_rank_has_room_for_is_refused(bench: Bench) -> None:
    task = bench.start()
    (await bench.call(0)).fail(OverloadedError("engine queue", 8, 1.0))
    second = await bench.call(1, "b")
    error = OverloadedError("engine queue", 8, 1.0)
    event = TokenEvent("r0", 0, 1, 0, None, finish=FinishReason.ERROR, error=error)
    bench.client.on_events("b", [event])
    with pytest.raises(OverloadedError):
        await task
    assert second.cancelled
    assert len(bench.ranks.calls) == 2


async def test_a_choice_moved_from_a_full_rank_survives_the_next_one(bench: Bench) -> None:
    task = bench.start()
    (await bench.call(0)).fail(OverloadedError("engine queue", 8, 1.0))
    second = await bench.call(1, "b")
    bench.emit(second, 7)
    second.fail(LinkLostError("rank b", "killed"))
    (await bench.call(2)).fail(OverloadedError("engine queue", 8, 1.0))
    bench.emit(await bench.call(3), 8, end=True)
    assert await task == [7, 8]


async def test_leaving_ranks_are_left_a_few_choices_at_a_time(bench: Bench) -> None:
    tasks = [bench.start(number) for number in range(MAX_MOVING + 2)]
    await eventually(lambda: len(bench.ranks.calls) == len(tasks))
    for number in range(len(tasks)):
        call = await bench.call(number)
        call.watcher.leaving()
    await eventually(lambda: len(bench.ranks.calls) == len(tasks) + MAX_MOVING)
    for number in range(len(tasks), 2 * len(tasks)):
        call = await bench.call(number, "b")
        bench.emit(call, number, end=True)
    results = await asyncio.gather(*tasks)
    assert all(len(ids) == 1 for ids in results)


async def test_ready_says_why_not(bench: Bench) -> None:
    with pytest.raises(NotReadyError, match="no attention rank"):
        await bench.client.ready()
    bench.client.on_state("a", RankState(EngineStats(), "no placement"))
    with pytest.raises(NotReadyError, match="no placement"):
        await bench.client.ready()
    names = [bench.client.fingerprint]
    bench.client.on_connected("a", False)
    bench.client.on_state("b", RankState(EngineStats(num_running=2), "", "fp_b"))
    await bench.client.ready()
    assert [*names, bench.client.fingerprint] == [None, "fp_b"]
    assert (await bench.client.stats()).num_running == 2


async def test_numbers_of_ranks_add_up_by_name_and_shard(bench: Bench) -> None:
    one = EngineStats(times={"queue": [5, 1, 2]}, by_shard={"0": [1, 2], "1": [3, 4]})
    two = EngineStats(times={"queue": [7, 0, 1]}, by_shard={"1": [10, 20]})
    for rank, stats in (("a", one), ("b", two)):
        bench.client.on_state(rank, RankState(stats, "", "fp"))
    total = await bench.client.stats()
    assert total.times == {"queue": [12, 1, 3]}
    assert total.by_shard == {"0": [1, 2], "1": [13, 24]}
    assert one.by_shard["1"] == [3, 4]


async def test_each_rank_that_speaks_is_told_with_what_it_said_last(bench: Bench) -> None:
    bench.client.on_state("b", RankState(EngineStats(num_running=2), "", "fp"))
    bench.client.on_state("a", RankState(EngineStats(), "no placement"))
    bench.client.on_state("b", RankState(EngineStats(num_running=3), "", "fp"))
    told = [(rank.rank, rank.num_running, rank.not_ready) for rank in bench.client.ranks()]
    assert told == [("a", 0, "no placement"), ("b", 3, "")]
    bench.client.on_connected("b", False)
    assert [rank.rank for rank in bench.client.ranks()] == ["a"]
