from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cluster.deadline import Deadline
from cluster.errors import (
    ContextTooLongError,
    InvalidRequestError,
    NotReadyError,
    OverloadedError,
    ShardFailedError,
)
from tests.unit.trinity_serve.engine.fakes import (
    FakeRunner,
    finishes,
    make_config,
    make_request,
    outputs,
    undisturbed,
)
from trinity_serve.engine.client import EngineClient
from trinity_serve.engine.engine import Engine
from trinity_serve.engine.inline_client import InlineClient
from trinity_serve.engine.request import FinishReason, GenerationRequest, TokenEvent

WAIT_S = 10.0


class Served:
    """A client with its fake model."""

    def __init__(self) -> None:
        config = make_config(max_num_seqs=4, max_waiting=2)
        self.runner = FakeRunner(config)
        self.runner_error: NotReadyError | None = None
        self.client = InlineClient(Engine(self.runner, config), self._check_runner)

    def _check_runner(self) -> None:
        if self.runner_error is not None:
            raise self.runner_error


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    await served.client.start()
    yield served
    served.runner.hold.set()
    assert await served.client.stop(Deadline.after(WAIT_S))


async def collect(client: EngineClient, request: GenerationRequest) -> list[TokenEvent]:
    async with asyncio.timeout(WAIT_S):
        return [event async for events in client.generate(request) for event in events]


async def until_idle(client: EngineClient) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            stats = await client.stats()
            if stats.num_running == 0 and stats.num_waiting == 0 and stats.kv_usage == 0.0:
                return
            await asyncio.sleep(0.002)


async def test_streams_side_by_side_get_their_own_tokens(served: Served) -> None:
    requests = [make_request(f"r{i}", 40, 20, seed=i) for i in range(6)]
    streams = await asyncio.gather(*(collect(served.client, request) for request in requests))
    for request, events in zip(requests, streams, strict=True):
        assert outputs(events, request) == undisturbed(request, 512)
        assert finishes(events, request) == [FinishReason.LENGTH]
        assert events[-1].finish is FinishReason.LENGTH


async def test_a_client_that_goes_away_frees_everything(served: Served) -> None:
    stream = served.client.generate(make_request(prompt=100, max_tokens=400))
    await anext(stream)
    await stream.aclose()
    await until_idle(served.client)


async def test_a_task_cancelled_while_it_waits_frees_everything(served: Served) -> None:
    served.runner.hold.clear()
    task = asyncio.create_task(collect(served.client, make_request()))
    await asyncio.to_thread(served.runner.entered.wait, WAIT_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    served.runner.hold.set()
    await until_idle(served.client)


async def test_refusals_are_raised_before_any_event(served: Served) -> None:
    with pytest.raises(ContextTooLongError):
        await collect(served.client, make_request(prompt=600))
    served.runner.hold.clear()
    tasks = [
        asyncio.create_task(collect(served.client, make_request(f"r{idx}"))) for idx in range(6)
    ]
    await asyncio.to_thread(served.runner.entered.wait, WAIT_S)
    with pytest.raises(OverloadedError):
        await collect(served.client, make_request("one too many"))
    with pytest.raises(InvalidRequestError, match="'r0' is running"):
        await collect(served.client, make_request("r0"))
    served.runner.hold.set()
    assert all(len(events) == 8 for events in await asyncio.gather(*tasks))


async def test_an_error_of_the_model_ends_the_iteration_without_raising(served: Served) -> None:
    served.runner.errors.append(ShardFailedError(2, "crashed"))
    (event,) = await collect(served.client, make_request())
    assert event.finish is FinishReason.ERROR
    assert isinstance(event.error, ShardFailedError)


async def test_ready_asks_the_engine_and_the_model(served: Served) -> None:
    await served.client.ready()
    served.runner_error = NotReadyError("layer 3 has no shard")
    with pytest.raises(NotReadyError, match="layer 3"):
        await served.client.ready()
    served.runner_error = None
    await served.client.stop(Deadline.after(WAIT_S))
    with pytest.raises(NotReadyError, match="not running"):
        await served.client.ready()


async def test_stop_cancels_open_streams_and_refuses_new_ones(served: Served) -> None:
    served.runner.hold.clear()
    task = asyncio.create_task(collect(served.client, make_request()))
    await asyncio.to_thread(served.runner.entered.wait, WAIT_S)
    assert not await served.client.stop(Deadline.after(0.05))
    assert [event.finish for event in await task] == [FinishReason.CANCELLED]
    with pytest.raises(NotReadyError):
        await collect(served.client, make_request("late"))
