"""What a rank counts of where its rows go, and when it tells."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from cluster.load_stats import LoadLE, LoadStats
from router.recorder import RoutingRecorder
from tests.fakes.shard_world import FakeRank, World
from tests.support.dispatching import ALTERNATING, HIDDEN, TOPK_IDS, two_shards
from trinity_serve.load_reporter import COUNT_EVERY, LoadReporter

IDS = torch.tensor([[0, 3], [3, 2]])


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Pool:
    told: list[LoadLE] = field(default_factory=list)


def reporter(clock: Clock, pool: Pool) -> LoadReporter:
    load = LoadReporter(LoadStats(2, 8), period_s=10.0, clock=clock)
    load.listener = pool.told.append
    return load


def step(load: LoadReporter) -> None:
    for layer in range(2):
        load.observe(layer, IDS)


def test_rows_of_a_period_are_told_once_when_it_is_over() -> None:
    clock, pool = Clock(), Pool()
    load = reporter(clock, pool)
    for _ in range(2 * COUNT_EVERY):
        step(load)
    assert pool.told == []
    clock.now_s = 10.0
    step(load)
    [rows_LE] = pool.told
    assert rows_LE.tolist() == [[2, 0, 2, 4, 0, 0, 0, 0]] * 2
    clock.now_s = 19.0
    step(load)
    assert len(pool.told) == 1


def test_one_step_in_a_few_is_counted_with_all_its_layers() -> None:
    clock, pool = Clock(), Pool()
    load = reporter(clock, pool)
    for _ in range(COUNT_EVERY):
        step(load)
    clock.now_s = 10.0
    step(load)
    assert pool.told[0].sum(axis=1).tolist() == [4.0, 4.0]


def test_a_request_that_wants_its_routes_does_not_stop_the_counting() -> None:
    rank = FakeRank(World())
    two_shards(rank, ALTERNATING)
    clock, pool = Clock(), Pool()
    load = reporter(clock, pool)
    rank.dispatcher.observe = load.observe
    recorder = RoutingRecorder(rank.dispatcher, 1, TOPK_IDS.shape[1])
    with recorder.recording():
        rank.layer(HIDDEN, TOPK_IDS, 0)
    assert np.array_equal(recorder.rows()[:, 0], TOPK_IDS)
    clock.now_s = 10.0
    rank.layer(HIDDEN, TOPK_IDS, 0)
    assert pool.told[0].sum() == TOPK_IDS.size
    rank.dispatcher.close()
