"""Balancing: EPLB's promises, and few moves that pay of our own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.balance import BalanceConfig, ByteBudget, rebalance, seat_loads
from cluster.eplb import pack_evenly, plan_eplb, replicate
from cluster.planner import Seat, plan_copies

SEATS = [Seat(index) for index in range(4)]


def test_packs_have_equal_counts_and_the_heaviest_are_parted() -> None:
    packs = pack_evenly(np.array([9.0, 8.0, 1.0, 1.0]), 2)
    assert packs.tolist() == [0, 1, 1, 0]
    with pytest.raises(ValueError, match="5 items do not fill 2"):
        pack_evenly(np.ones(5), 2)


def test_further_copies_go_to_the_largest_load_per_copy() -> None:
    assert replicate(np.array([10.0, 4.0, 1.0]), 6).tolist() == [0, 1, 2, 0, 0, 1]


def test_eplb_fills_every_seat_and_forgets_no_expert() -> None:
    load_LE = np.random.default_rng(0).exponential(size=(3, 16))
    copies_LSE = plan_eplb(load_LE, 4, 24)
    assert (copies_LSE.sum(axis=2) == 6).all()
    assert (copies_LSE.sum(axis=1) >= 1).all()


def test_a_plan_within_the_margin_is_left_alone() -> None:
    plan_LER = plan_copies(SEATS, 1, (1, 16))
    load_LE = np.ones((1, 16))
    load_LE[0, 0] = 1.5
    after_LER, moves = rebalance(plan_LER, load_LE, SEATS, max_moves=100)
    assert moves == 0
    assert (after_LER == plan_LER).all()


def test_two_hot_experts_of_one_seat_are_parted_by_one_exchange() -> None:
    plan_LER = plan_copies(SEATS, 1, (1, 16))
    load_LE = np.ones((1, 16))
    load_LE[0, [0, 1]] = 10.0
    after_LER, moves = rebalance(plan_LER, load_LE, SEATS, max_moves=2)
    assert moves == 2
    assert after_LER[0, 0, 0] != after_LER[0, 1, 0]


def test_with_copies_there_nothing_has_to_move() -> None:
    plan_LER = plan_copies(SEATS, 2, (1, 16))
    load_LE = np.ones((1, 16))
    load_LE[0, plan_LER[0, :, 0] == 0] = 3.0
    after_LER, moves = rebalance(plan_LER, load_LE, SEATS, max_moves=0)
    assert moves == 0
    assert seat_loads(load_LE[0], after_LER[0], 4).max() < 12.0


def test_without_budget_nothing_moves() -> None:
    plan_LER = plan_copies(SEATS, 1, (1, 16))
    load_LE = np.ones((1, 16))
    load_LE[0, :4] = 10.0
    _, moves = rebalance(plan_LER, load_LE, SEATS, max_moves=0)
    assert moves == 0


def test_a_budget_grows_with_time_up_to_its_burst() -> None:
    budget = ByteBudget(bytes_per_s=10.0, burst_bytes=25.0)
    assert budget.available(1.0) == 10.0
    budget.spend(4.0)
    assert budget.available(2.0) == 16.0
    assert budget.available(60.0) == 25.0


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(0, 12))
def test_a_plan_stays_even_and_apart_and_its_peak_never_grows(
    seed: int, num_replicas: int, max_moves: int
) -> None:
    load_LE = np.random.default_rng(seed).exponential(size=(3, 16)) ** 2
    plan_LER = plan_copies(SEATS, num_replicas, (3, 16))
    after_LER, moves = rebalance(plan_LER, load_LE, SEATS, max_moves, BalanceConfig(margin=1.0))
    assert moves <= max_moves
    for layer in range(3):
        held = [np.bincount(plan[layer].ravel(), minlength=4) for plan in (plan_LER, after_LER)]
        assert (held[0] == held[1]).all()
        assert all(len(set(copies)) == num_replicas for copies in after_LER[layer].tolist())
        before_S = seat_loads(load_LE[layer], plan_LER[layer], 4)
        after_S = seat_loads(load_LE[layer], after_LER[layer], 4)
        assert after_S.max() <= before_S.max() + 1e-9
    moved = (after_LER[:, :, :, None] != plan_LER[:, :, None, :]).all(axis=3).sum()
    assert moved <= moves


def test_no_exchange_brings_copies_onto_one_node() -> None:
    nodes = [Seat(index, ("", f"node-{index % 2}")) for index in range(4)]
    for seed in range(50):
        load_LE = np.random.default_rng(seed).exponential(size=(2, 16)) ** 2
        plan_LER = plan_copies(nodes, 2, (2, 16))
        after_LER, _ = rebalance(plan_LER, load_LE, nodes, 50, BalanceConfig(margin=1.0))
        assert (after_LER[:, :, 0] % 2 != after_LER[:, :, 1] % 2).all()
