"""The pool's numbers follow what its membership does."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.load_stats import LoadLE
from cluster.membership import Membership
from cluster.pool_messages import Scale, ShardKey, Target
from cluster.pool_metrics import POOL_SPECS, PoolMetrics, balance
from tests.support.pool import EXPERT_BYTES, NUM_EXPERTS, NUM_LAYERS, World

NO_ROWS: LoadLE = np.zeros((NUM_LAYERS, NUM_EXPERTS))


class Watched:
    """A world whose every turn is counted."""

    def __init__(self, target: Target) -> None:
        self.world = World(Membership(NUM_LAYERS, NUM_EXPERTS, Scale.of(target)))
        self.metrics = PoolMetrics()

    def settle(self) -> None:
        for _ in range(60):
            self.turn()
            self.world.load_all()
            self.world.now_s += 0.5

    def turn(self) -> None:
        self.metrics.turn(self.world.pool, self.world.tick())

    def numbers(self, rows_LE: LoadLE = NO_ROWS) -> dict[str, float]:
        """By name and label values; each is there once."""
        numbers: dict[str, float] = {}
        for sample in self.metrics.samples(self.world.pool, rows_LE):
            name = ".".join([sample.name.removeprefix("trinity_"), *sample.labels.values()])
            assert name not in numbers
            assert not isinstance(sample.value, list | tuple)
            numbers[name] = float(sample.value)  # type: ignore[arg-type]
        return numbers


@pytest.fixture
def watched() -> Watched:
    watched = Watched(Target(2))
    watched.settle()
    return watched


def test_a_settled_pool_says_who_serves_and_that_all_is_covered(watched: Watched) -> None:
    numbers = watched.numbers()
    assert numbers["shards.ready"] == numbers["shards_wanted"] == 2
    assert numbers["experts_uncovered"] == numbers["copies_to_load"] == 0
    assert (numbers["shard_starts.0"], numbers["shard_failures.0"]) == (1, 0)
    assert numbers["copies_moved"] == 0  # what a new shard loads has not moved
    assert (numbers["placement_epoch"], numbers["ranks"]) == (1, 1)


def test_a_death_is_a_failure_and_a_start_of_that_shard_and_uncovers_its_experts(
    watched: Watched,
) -> None:
    watched.world.die(watched.world.living[1])
    watched.turn()
    numbers = watched.numbers()
    assert (numbers["shard_failures.1"], numbers["shard_failures.0"]) == (1, 0)
    assert numbers["experts_uncovered"] == NUM_LAYERS * NUM_EXPERTS / 2
    assert numbers["shards.joining"] == 1
    watched.settle()
    numbers = watched.numbers()
    assert (numbers["shard_starts.1"], numbers["shard_starts.0"]) == (2, 1)
    assert numbers["experts_uncovered"] == 0
    assert numbers["copies_moved"] == 0


def test_moves_are_counted_in_copies_and_bytes_and_the_operation_has_one_phase(
    watched: Watched,
) -> None:
    watched.world.pool.scale_to(Target(1), "less")
    watched.settle()
    numbers = watched.numbers()
    moved = NUM_LAYERS * NUM_EXPERTS / 2
    assert numbers["copies_moved"] == moved
    assert numbers["bytes_moved"] == moved * EXPERT_BYTES
    phases = {name: value for name, value in numbers.items() if name.startswith("scale_operation")}
    assert phases.pop("scale_operation.done") == 1
    assert set(phases.values()) == {0}


def test_the_same_failure_is_counted_once(watched: Watched) -> None:
    key: ShardKey = watched.world.living[0]
    watched.world.pool.suspected(key.index, key.incarnation, "silent", watched.world.now_s)
    for _ in range(3):
        watched.turn()
    assert watched.numbers()["shard_failures.0"] == 1


def test_balance_is_the_busiest_shards_rows_over_the_mean(watched: Watched) -> None:
    placement = watched.world.pool.placement
    assert placement is not None
    rows_LE = np.where(placement.primary_LE == 0, 3.0, 1.0)
    assert balance(placement, rows_LE) == pytest.approx(1.5)
    assert watched.numbers(rows_LE)["balance"] == pytest.approx(1.5)
    assert balance(placement, NO_ROWS) == 0.0


def test_the_samples_are_those_of_the_table(watched: Watched) -> None:
    names = {sample.name for sample in watched.metrics.samples(watched.world.pool, NO_ROWS)}
    assert names == {spec.name for spec in POOL_SPECS}
    labels = {spec.name: spec.labels for spec in POOL_SPECS}
    for sample in watched.metrics.samples(watched.world.pool, NO_ROWS):
        assert tuple(sample.labels) == labels[sample.name]
