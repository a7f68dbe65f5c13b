"""Further copies out of a budget: for what a loss would cost most, apart, and not for ever new."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.planner import Seat, plan_copies
from cluster.spares import num_spares, plan_spares

SHAPE = (2, 8)
SEATS = [Seat(index, ("", f"node-{index % 2}")) for index in range(4)]


def load_of(*hot: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    load_LE = np.ones(SHAPE)
    load_LE[:, list(hot)] = 20.0
    return load_LE


def test_the_busiest_experts_get_their_second_copy_first_and_on_another_node() -> None:
    plan_LER = plan_copies(SEATS, 1, SHAPE)
    after_LER, num_new = plan_spares(plan_LER, 1, load_of(0, 5), SEATS, (4, 100))
    assert num_new == num_spares(after_LER, 1) == 4
    assert sorted({int(expert) for _, expert in np.argwhere(after_LER[:, :, 1] >= 0)}) == [0, 5]
    hot_NR = after_LER[:, [0, 5]].reshape(-1, 2)
    assert (hot_NR[:, 0] % 2 != hot_NR[:, 1] % 2).all()


def test_no_more_copies_are_new_than_may_be_read_now() -> None:
    plan_LER = plan_copies(SEATS, 1, SHAPE)
    some_LER, num_new = plan_spares(plan_LER, 1, load_of(0, 5), SEATS, (4, 1))
    assert (num_new, num_spares(some_LER, 1)) == (1, 1)
    all_LER, num_new = plan_spares(some_LER, 1, load_of(0, 5), SEATS, (4, 100))
    assert (num_new, num_spares(all_LER, 1)) == (3, 4)


def test_a_copy_stays_until_another_is_worth_clearly_more() -> None:
    plan_LER = plan_copies(SEATS, 1, SHAPE)
    plan_LER, _ = plan_spares(plan_LER, 1, load_of(0), SEATS, (2, 100))
    close_LE = load_of(0)
    close_LE[:, 1] = 25.0
    same_LER, num_new = plan_spares(plan_LER, 1, close_LE, SEATS, (2, 100))
    assert num_new == 0
    assert (same_LER == plan_LER).all()
    close_LE[:, 1] = 50.0
    other_LER, num_new = plan_spares(plan_LER, 1, close_LE, SEATS, (2, 100))
    assert num_new == 2
    assert (other_LER[:, 1, 1] >= 0).all()
    assert (other_LER[:, 0, 1] == -1).all()


def test_without_a_budget_further_copies_go() -> None:
    plan_LER = plan_copies(SEATS, 1, SHAPE)
    plan_LER, _ = plan_spares(plan_LER, 1, load_of(0), SEATS, (2, 100))
    after_LER, num_new = plan_spares(plan_LER, 1, load_of(0), SEATS, (0, 100))
    assert (num_new, num_spares(after_LER, 1)) == (0, 0)


def test_an_expert_whose_copies_share_a_node_comes_before_one_that_is_parted() -> None:
    plan_LER = np.array([[[0, 2], [0, 1]]], np.int32)
    load_LE = np.array([[10.0, 20.0]])
    after_LER, _ = plan_spares(plan_LER, 2, load_LE, SEATS, (1, 1))
    assert after_LER[0, :, 2].tolist()[1] == -1
    assert after_LER[0, 0, 2] in (1, 3)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 3), st.integers(0, 20), st.integers(0, 20))
def test_every_budget_is_kept_and_no_seat_has_two_copies(
    seed: int, num_replicas: int, max_spares: int, max_new: int
) -> None:
    random = np.random.default_rng(seed)
    plan_LER = plan_copies(SEATS, num_replicas, SHAPE)
    for _ in range(3):
        before = num_spares(plan_LER, num_replicas)
        load_LE = random.exponential(size=SHAPE)
        limits = (max_spares, max_new)
        plan_LER, num_new = plan_spares(plan_LER, num_replicas, load_LE, SEATS, limits)
        assert num_new <= max_new
        assert num_spares(plan_LER, num_replicas) <= min(max_spares, before + max_new)
        for copies in plan_LER.reshape(-1, num_replicas + 1).tolist():
            held = [copy for copy in copies if copy >= 0]
            assert len(set(held)) == len(held) >= num_replicas
