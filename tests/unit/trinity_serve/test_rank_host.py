"""A rank as its ingresses see it: real engine and stream, a runner that always says the same."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cluster.errors import NotReadyError
from trinity_serve.api.event_codec import RankState
from trinity_serve.api.event_stream import EventServer, StreamAddress
from trinity_serve.engine.config import EngineConfig
from trinity_serve.engine.engine import Engine
from trinity_serve.engine.request import (
    FinishReason,
    GenerationRequest,
    SamplingParams,
    TokenEvent,
)
from trinity_serve.model.batch import ForwardBatch
from trinity_serve.rank_host import RankHost


class Runner:
    """Always chooses token 9; steps wait while `held` is set."""

    vocab_size = 16

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self._wake = threading.Event()

    def forward(self, batch: ForwardBatch) -> Tensor:
        self.free.wait(5)
        logits = torch.zeros(len(batch.logits_rows_R), self.vocab_size)
        logits[:, 9] = 50.0
        return logits

    def wait(self, timeout_s: float) -> None:
        self._wake.wait(timeout_s)
        self._wake.clear()

    def last_sign_at_s(self) -> float:
        return 0.0

    def wake(self) -> None:
        self._wake.set()


class Ingress:
    """Notes events."""

    def __init__(self) -> None:
        self.events: list[TokenEvent] = []
        self.ranks: set[str] = set()

    def on_events(self, rank: str, events: list[TokenEvent]) -> None:
        self.events += events

    def on_state(self, rank: str, state: RankState) -> None:
        self.ranks.add(rank)

    def on_connected(self, rank: str, connected: bool) -> None:
        if not connected:
            self.ranks.discard(rank)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


class Bench:
    """A rank, an ingress, and the stream between them."""

    def __init__(self, address: StreamAddress, ingress: Ingress) -> None:
        self.address, self.ingress, self.runner = address, ingress, Runner()
        config = EngineConfig(
            num_global_blocks=16,
            num_sliding_blocks=16,
            sliding_window=64,
            max_model_len=256,
            max_num_seqs=4,
            max_num_batched_tokens=64,
            max_prefill_chunk=32,
            max_waiting=4,
        )
        self.missing: list[str] = []
        self.host = RankHost("rank 0", Engine(self.runner, config), lambda: self.missing)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    ingress = Ingress()
    server = EventServer("secret", ingress)
    address = await server.start(str(tmp_path / "events"), "127.0.0.1", "127.0.0.1")
    bench = Bench(address, ingress)
    yield bench
    bench.runner.free.set()
    await bench.host.close()
    await server.close()


def request(max_tokens: int = 3, attempt: int = 0) -> GenerationRequest:
    params = SamplingParams(max_tokens=max_tokens, seed=1, temperature=0.0)
    return GenerationRequest("r", 0, (1, 2), params, attempt=attempt)


async def test_events_come_over_the_stream_and_the_call_ends_after_the_last(bench: Bench) -> None:
    await bench.host.generate(request(), bench.address)
    await eventually(lambda: len(bench.ingress.events) == 3)
    assert [event.token_id for event in bench.ingress.events] == [9, 9, 9]
    assert bench.ingress.events[-1].finish is FinishReason.LENGTH


async def test_a_cancelled_call_frees_the_choice(bench: Bench) -> None:
    call = asyncio.create_task(bench.host.generate(request(max_tokens=200), bench.address))
    await eventually(lambda: bench.host.state().stats.num_running == 1)
    call.cancel()
    await eventually(lambda: bench.host.state().stats.num_running == 0)


async def test_an_ingress_that_attaches_hears_of_the_rank_without_a_call(bench: Bench) -> None:
    bench.host.attach([bench.address])
    await eventually(lambda: bench.ingress.ranks == {"rank 0"})


async def test_it_is_not_ready_while_the_model_misses_something(bench: Bench) -> None:
    assert bench.host.not_ready() == ""
    bench.missing = ["no placement"]
    assert bench.host.not_ready() == "no placement"


async def test_a_request_before_all_is_there_is_refused_and_one_after_a_loss_is_not(
    bench: Bench,
) -> None:
    bench.missing.append("no placement")
    with pytest.raises(NotReadyError, match="no placement"):
        await bench.host.generate(request(), bench.address)
    bench.missing.clear()
    await bench.host.until_ready()
    bench.missing.append("shard 2 is lost")
    await bench.host.generate(request(), bench.address)
    await eventually(lambda: len(bench.ingress.events) == 3)


async def test_closing_ends_open_choices_so_that_their_ingress_replays_them(bench: Bench) -> None:
    call = asyncio.create_task(bench.host.generate(request(max_tokens=200), bench.address))
    await eventually(lambda: len(bench.ingress.events) > 0)
    await bench.host.close()
    async with asyncio.timeout(5):
        await asyncio.gather(call, return_exceptions=True)
    with pytest.raises(NotReadyError):
        bench.host.check_alive()
