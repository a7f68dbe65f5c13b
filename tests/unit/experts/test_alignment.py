"""Who waits for whom, and for how long, on a clock of the test's own."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

import pytest

from cluster.wire import CallId
from experts.alignment import Alignment, Batch

NUM_LAYERS = 10
LAYER_S = 0.010
EXPERT_S = 0.004


def call_id(rank: int, layer: int, *, step: int = 0, attempt: int = 0) -> CallId:
    return CallId(rank, 1, step, 0, layer, attempt)


@dataclass
class Simulation:
    """Ranks that walk through layers, and a shard that takes `expert_s` per product."""

    starts_s: dict[int, float]
    layer_s: dict[int, float]
    expert_s: float = EXPERT_S
    alignment: Alignment[int] = field(default_factory=Alignment)
    products: list[tuple[float, int, list[int]]] = field(default_factory=list)
    """(time, layer, ranks)"""
    layers: dict[int, int] = field(default_factory=dict)

    def run(self, until_s: float, gone_at_s: dict[int, float] | None = None) -> None:
        events = [(start_s, rank) for rank, start_s in self.starts_s.items()]
        heapq.heapify(events)
        gone = dict(gone_at_s or {})
        now_s = 0.0
        while now_s < until_s:
            closes_at_s = self.alignment.next_deadline_s()
            if events and (closes_at_s is None or events[0][0] <= closes_at_s):
                at_s, rank = heapq.heappop(events)
                now_s = max(now_s, at_s)
                if now_s >= gone.get(rank, until_s):
                    continue
                layer = self.layers.get(rank, 0)
                self.alignment.add(call_id(rank, layer), rank, now_s)
            elif closes_at_s is not None:
                now_s = max(now_s, closes_at_s)
            else:
                return
            for batch in self.alignment.take(now_s):
                now_s = self._compute(batch, now_s, events)

    def _compute(self, batch: Batch[int], now_s: float, events: list[tuple[float, int]]) -> float:
        self.products.append((now_s, batch.layer, sorted(batch.origins)))
        now_s += self.expert_s
        self.alignment.ran(self.expert_s)
        for rank in batch.origins:
            self.layers[rank] = (batch.layer + 1) % NUM_LAYERS
            heapq.heappush(events, (now_s + self.layer_s[rank], rank))
        return now_s

    def shared(self, since_s: float) -> float:
        """Return the share of products since then that were for more than one rank."""
        recent = [ranks for at_s, _, ranks in self.products if at_s >= since_s]
        return sum(len(ranks) > 1 for ranks in recent) / len(recent)

    def steps(self, rank: int) -> int:
        return sum(layer == 0 and rank in ranks for _, layer, ranks in self.products)


def test_one_rank_alone_never_waits() -> None:
    alignment: Alignment[str] = Alignment()
    for layer in range(NUM_LAYERS):
        alignment.add(call_id(1, layer), "call", float(layer))
        batches = alignment.take(float(layer))
        assert [(batch.layer, batch.origins) for batch in batches] == [(layer, ["call"])]
        assert alignment.next_deadline_s() is None
        alignment.ran(1.0)


@pytest.mark.parametrize("phase", [0.1, 0.3, 0.45, 0.5, 0.62, 0.8])
@pytest.mark.parametrize("expert_s", [EXPERT_S, EXPERT_S / 10])
def test_two_ranks_fall_into_step_from_any_distance_and_stay_there(
    phase: float, expert_s: float
) -> None:
    step_s = NUM_LAYERS * (LAYER_S + expert_s)
    starts_s = {0: 0.0, 1: phase * step_s}
    simulation = Simulation(starts_s, {0: LAYER_S, 1: LAYER_S}, expert_s)
    simulation.run(30 * step_s)
    assert simulation.shared(15 * step_s) == 1.0


def test_four_ranks_fall_into_step() -> None:
    step_s = NUM_LAYERS * (LAYER_S + EXPERT_S)
    starts = {rank: 0.27 * rank * step_s for rank in range(4)}
    simulation = Simulation(starts, dict.fromkeys(range(4), LAYER_S))
    simulation.run(60 * step_s)
    late = [ranks for at_s, _, ranks in simulation.products if at_s > 40 * step_s]
    assert sum(ranks == [0, 1, 2, 3] for ranks in late) / len(late) > 0.95


@pytest.mark.parametrize("slower", [1.05, 1.3, 2.0, 3.1])
def test_ranks_of_unequal_steps_cost_each_other_little(slower: float) -> None:
    layer_s = {0: LAYER_S, 1: slower * LAYER_S}
    expert_s = EXPERT_S / 10
    together = Simulation({0: 0.0, 1: 0.03}, layer_s, expert_s)
    together.run(10.0)
    for rank in (0, 1):
        alone = Simulation({rank: 0.0}, layer_s, expert_s)
        alone.run(10.0)
        assert together.steps(rank) > 0.9 * alone.steps(rank)


def test_a_rank_that_goes_silent_costs_the_others_one_window() -> None:
    step_s = NUM_LAYERS * (LAYER_S + EXPERT_S)
    simulation = Simulation({0: 0.0, 1: 0.0}, {0: LAYER_S, 1: LAYER_S})
    silent_s = 10 * step_s
    simulation.run(20 * step_s, gone_at_s={1: silent_s})
    alone_steps = [
        at_s for at_s, layer, ranks in simulation.products if at_s > silent_s and layer == 0
    ]
    gaps = [late - early for early, late in itertools.pairwise(alone_steps)]
    assert max(gaps[2:]) < step_s * 1.01


def test_a_retry_runs_at_once() -> None:
    alignment = in_step(0, 1)
    alignment.add(call_id(0, 1, attempt=1), 0, 10.0)
    assert [batch.origins for batch in alignment.take(10.0)] == [[0]]


def in_step(*ranks: int) -> Alignment[int]:
    """Ranks that have shared two first layers, a second apart, at 8 s and 9 s."""
    alignment: Alignment[int] = Alignment()
    alignment.ran(0.4)
    for now_s in (8.0, 9.0):
        for rank in ranks:
            alignment.add(call_id(rank, 0), rank, now_s)
        alignment.take(now_s)
    return alignment


def test_a_later_layer_waits_a_quarter_of_the_expert_time_for_ranks_in_step() -> None:
    alignment = in_step(0, 1)
    alignment.add(call_id(0, 1), 0, 9.5)
    assert alignment.take(9.5) == []
    assert alignment.next_deadline_s() == 9.6
    alignment.add(call_id(1, 1), 1, 9.55)
    assert [batch.origins for batch in alignment.take(9.55)] == [[0, 1]]


def test_a_rank_that_misses_a_window_is_waited_for_again_after_its_next_first_layer() -> None:
    alignment = in_step(0, 1)
    alignment.add(call_id(0, 1), 0, 9.5)
    assert len(alignment.take(9.6)) == 1
    alignment.add(call_id(0, 2), 0, 9.7)
    assert len(alignment.take(9.7)) == 1
    for rank in (0, 1):
        alignment.add(call_id(rank, 0), rank, 10.0)
    alignment.take(10.0)
    alignment.add(call_id(0, 1), 0, 10.5)
    assert alignment.take(10.5) == []


def test_nobody_waits_for_a_rank_that_is_gone_and_its_calls_go_with_it() -> None:
    alignment = in_step(0, 1)
    alignment.add(call_id(1, 3), 1, 9.4)
    alignment.forget(1, 1)
    alignment.add(call_id(0, 1), 0, 9.5)
    assert [batch.origins for batch in alignment.take(9.5)] == [[0]]
    assert alignment.next_deadline_s() is None


def test_micro_batches_of_one_rank_do_not_wait_for_each_other() -> None:
    alignment: Alignment[int] = Alignment()
    for step in range(3):
        for micro_batch in (0, 1):
            now_s = step + 0.5 * micro_batch
            alignment.add(CallId(0, 1, step, micro_batch, 0, 0), micro_batch, now_s)
            assert [batch.origins for batch in alignment.take(now_s)] == [[micro_batch]]
