"""Real processes are killed, stopped, added and ended under mixed streams: nothing shows.

Every test is one kind of event on one server; `python -m tests.chaos.run` has all of them, many
times over.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from tests.chaos.clients import VanishingClients
from tests.chaos.events import events_for
from tests.chaos.faults import Fault, Freeze
from tests.chaos.harness import (
    ChaosResult,
    Golden,
    Load,
    Schedule,
    crowded,
    disturbed,
    undisturbed,
)
from tests.chaos.outcome import Outcome, run_request
from tests.chaos.table import complaints
from tests.chaos.target import SHARD, Scale, Target
from tests.chaos.workload import ChaosRequest, Sizes, endless_request, mixed_requests
from tests.support.server import trinity_server

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

NUM_REQUESTS = 24
WORKLOAD_SEED = 6
AT_LENGTH = [
    *("frames truncated", "frames duplicated", "frames reordered", "frames late"),
    *("connection reset", "connection half-open"),
    *("joining shard killed", "pool killed at a join", "joining rank killed"),
    *("shard killed at a publish", "pool killed at a publish"),
]


@dataclass(frozen=True)
class Arena:
    """The server, what it is asked, and what it answers undisturbed."""

    target: Target
    load: Load
    golden: Golden

    def survives(self, *names: str) -> None:
        """Strike with each of these events once; hold every request to its undisturbed output."""
        seed = secrets.randbits(31)
        events = " ".join(f"'{name}'" for name in names)
        print(f"python -m tests.chaos.run --events {events} --seed {seed}")
        asyncio.run(self.strike(events_for(list(names), self.target, self.misused), seed))

    async def strike(self, faults: list[Fault], seed: int) -> ChaosResult:
        """As `survives`, with faults of the test's own; return what happened."""
        schedule = Schedule(seed, len(faults), pause_s=(0.2, 1.0), settled=self.target.settled)
        result = await disturbed(self.load, self.golden, faults, schedule)
        assert complaints(result) == []
        assert len(result.events) == len(faults)
        assert all(result.during(index) for index in range(len(faults)))
        return result

    @property
    def misused(self) -> ChaosRequest:
        """What clients ask for that do not wait for it."""
        return endless_request("tiny")


def eventually(condition: Callable[[], bool], within_s: float) -> float | None:
    """Return after how many seconds `condition` came true; None when it did not in time."""
    began_s = time.monotonic()
    while (waited_s := time.monotonic() - began_s) < within_s:
        if condition():
            return waited_s
        time.sleep(0.05)
    return None


@pytest.fixture(scope="module")
def arena(tiny_checkpoint: Path) -> Iterator[Arena]:
    model = ("--model", str(tiny_checkpoint), "--served-model-name", "tiny", "--dtype", "float32")
    scale = ("--shards", "3", "--replicas", "2", "--ranks", "2")
    arguments = ["--mode", "local", *model, *scale, "--kv-memory", "32MiB", "--threads", "1"]
    with trinity_server(arguments) as server:
        sizes = Sizes(long_prompt=(150, 300), vocab_size=512)
        requests = mixed_requests("tiny", NUM_REQUESTS, WORKLOAD_SEED, sizes=sizes)
        load = Load(server.url, requests, concurrency=6)
        target = Target(server.url, server.process.pid)
        yield Arena(target, load, asyncio.run(undisturbed(load)))


@pytest.mark.parametrize(
    "event",
    [
        "shard killed",
        "shard killed, no copy",
        "shard silent for a moment",
        "rank killed",
        "pool killed",
        "ranks 2, 1, 2",
        "slow readers",
        "frames corrupted",
        "NaN in replies",
        *(pytest.param(name, marks=pytest.mark.slow) for name in AT_LENGTH),
    ],
)
def test_no_request_fails_and_no_output_changes(arena: Arena, event: str) -> None:
    arena.survives(event)


@pytest.mark.slow
def test_experts_gone_beyond_the_grace_refuse_by_type_and_come_back_by_themselves(
    arena: Arena,
) -> None:
    seed = secrets.randbits(31)
    [gone] = events_for(["two shards gone beyond the grace"], arena.target, arena.misused)
    result = asyncio.run(arena.strike([gone], seed))
    assert {o.failure.kind for o in result.excused() if o.failure is not None} == {"unavailable"}


def test_what_vanished_clients_held_is_free_again(arena: Arena) -> None:
    target = arena.target
    # What a process opens once and keeps, with its first crowd, is no client's.
    asyncio.run(VanishingClients("first", target.url, arena.misused, count=500).strike(Random(0)))
    assert eventually(target.holds_nothing, 15.0) is not None
    files_before = target.open_files()
    vanishing = VanishingClients("vanish", target.url, arena.misused, count=500)
    said = asyncio.run(vanishing.strike(Random(1)))
    assert said == "500 of 500 clients left a stream that had begun"

    def is_free() -> bool:
        return target.holds_nothing() and target.open_files() <= files_before

    freed_after_s = eventually(is_free, 15.0)
    assert freed_after_s is not None, (target.held(), target.open_files(), files_before)
    print(f"free after {freed_after_s:.2f} s")  # the chaos run holds it to five


async def broken_streams(target: Target, request: ChaosRequest, count: int) -> list[Outcome]:
    """Return what became of streams whose ingress was killed in their middle."""
    streams = [asyncio.create_task(run_request(target.url, request, 60.0)) for _ in range(count)]
    while (await asyncio.to_thread(target.held))["vllm_num_requests_running"] < count:
        await asyncio.sleep(0.05)
    await events_for(["ingress killed"], target, request)[0].strike(Random(1))
    return list(await asyncio.gather(*streams))


def test_a_killed_ingress_breaks_its_streams_and_the_ranks_drop_them(arena: Arena) -> None:
    target = arena.target
    outcomes = asyncio.run(broken_streams(target, arena.misused, 8))
    assert [o.failure and o.failure.kind for o in outcomes] == ["broken"] * 8
    assert eventually(target.is_ready, 60.0) is not None
    assert eventually(target.holds_nothing, 15.0) is not None
    assert eventually(target.settled, 60.0) is not None
    again = asyncio.run(crowded(arena.load, arena.golden))
    assert complaints(again) == []


async def samples_of_ready(target: Target, fault: Fault) -> dict[float, bool]:
    """Return what `/ready` said so many seconds after the begin of a fault, until its end."""
    began_s = time.monotonic()
    striking = asyncio.create_task(fault.strike(Random(1)))
    said: dict[float, bool] = {}
    while not striking.done():
        said[time.monotonic() - began_s] = await asyncio.to_thread(target.is_ready)
        await asyncio.sleep(0.05)
    await striking
    return said


def test_ready_stays_true_while_a_shard_with_copies_elsewhere_is_silent(arena: Arena) -> None:
    silent = Freeze("silent", arena.target.victims(SHARD), 5.0)
    said = asyncio.run(samples_of_ready(arena.target, silent))
    assert said
    assert all(said.values())
    assert eventually(arena.target.settled, 60.0) is not None


def test_ready_turns_false_while_a_shard_without_a_copy_is_silent(arena: Arena) -> None:
    target = arena.target
    asyncio.run(Scale("one copy", target, {"replicas": 1}).strike(Random(1)))
    silent = Freeze("silent", target.victims(SHARD), 10.0)
    said = asyncio.run(samples_of_ready(target, silent))
    assert not all(said.values())
    print(f"not ready after {min(at_s for at_s, ready in said.items() if not ready):.2f} s")
    asyncio.run(Scale("all copies", target, {"replicas": 2}).strike(Random(1)))
    assert eventually(target.settled, 60.0) is not None
