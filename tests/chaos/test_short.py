"""Real processes are killed, stopped, added and ended under mixed streams: nothing shows.

Every test is one kind of event on one server; `python -m tests.chaos.run` has all of them, many
times over.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos.events import events_for
from tests.chaos.harness import Golden, Load, Schedule, disturbed, undisturbed
from tests.chaos.table import complaints
from tests.chaos.target import SHARD, Target
from tests.chaos.workload import Sizes, mixed_requests
from tests.support.server import trinity_server

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

NUM_REQUESTS = 24
WORKLOAD_SEED = 6


@dataclass(frozen=True)
class Arena:
    """The server, what it is asked, and what it answers undisturbed."""

    target: Target
    load: Load
    golden: Golden

    def survives(self, *names: str) -> None:
        """Strike with each of these events once; hold every request to its undisturbed output."""
        faults = events_for(list(names), self.target, self.load.requests[0])
        seed = secrets.randbits(31)
        events = " ".join(f"'{name}'" for name in names)
        print(f"python -m tests.chaos.run --events {events} --seed {seed}  # replays it")
        schedule = Schedule(seed, len(faults), pause_s=(0.2, 1.0), settled=self.target.settled)
        result = asyncio.run(disturbed(self.load, self.golden, faults, schedule))
        assert complaints(result) == []
        assert len(result.events) == len(names)
        assert all(result.during(index) for index in range(len(names)))


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
        "clients vanish",
    ],
)
def test_no_request_fails_and_no_output_changes(arena: Arena, event: str) -> None:
    arena.survives(event)


def test_what_vanished_clients_held_is_free_again(arena: Arena) -> None:
    arena.survives("clients vanish")
    assert len(arena.target.victims(SHARD).find()) == arena.target.num_shards
