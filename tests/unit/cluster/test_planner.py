"""Plans of copies: equal, apart, close to what is held, and refused when impossible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ConfigError
from cluster.planner import Int32, Seat, check_scale, plan_copies

SHAPE = (2, 16)


def seats(count: int, num_nodes: int = 1) -> list[Seat]:
    return [Seat(index, (f"node-{index % num_nodes}",)) for index in range(count)]


def num_moves(before_LER: Int32, after_LER: Int32) -> int:
    """Copies that a seat has after and had not before, in all layers."""
    pairs = zip(
        before_LER.reshape(-1, before_LER.shape[2]),
        after_LER.reshape(-1, after_LER.shape[2]),
        strict=True,
    )
    return sum(len(set(after.tolist()) - set(before.tolist())) for before, after in pairs)


def counts(plan_LE: Int32, num_seats: int) -> list[int]:
    return [int((plan_LE[0] == seat).sum()) for seat in range(num_seats)]


def test_without_replicas_each_seat_begins_with_a_contiguous_slice() -> None:
    plan_LER = plan_copies(seats(4), 1, SHAPE)
    assert plan_LER[1, :, 0].tolist() == [expert // 4 for expert in range(16)]


def test_the_copies_of_one_seat_are_spread_over_all_others() -> None:
    plan_LER = plan_copies(seats(5), 2, (1, 40))
    for seat in range(5):
        helpers = {int(b) for a, b in plan_LER[0].tolist() if a == seat}
        assert helpers == set(range(5)) - {seat}


def test_copies_lie_on_different_nodes_when_there_are_several() -> None:
    plan_LER = plan_copies(seats(4, num_nodes=2), 2, SHAPE)
    assert ((plan_LER % 2)[:, :, 0] != (plan_LER % 2)[:, :, 1]).all()


def test_labels_part_copies_before_nodes_do() -> None:
    zones = [Seat(index, (f"zone-{index // 2}", f"node-{index}")) for index in range(4)]
    plan_LER = plan_copies(zones, 2, SHAPE)
    assert ((plan_LER // 2)[:, :, 0] != (plan_LER // 2)[:, :, 1]).all()


def test_a_plan_made_before_nodes_were_known_is_mended_by_exchanges() -> None:
    blind_LER = plan_copies([Seat(index) for index in range(6)], 2, SHAPE)
    known = [Seat(index, (f"node-{index // 3}",)) for index in range(6)]
    mended_LER = plan_copies(known, 2, SHAPE, blind_LER)
    assert ((mended_LER // 3)[:, :, 0] != (mended_LER // 3)[:, :, 1]).all()
    assert num_moves(blind_LER, mended_LER) < blind_LER.size // 2


def test_one_more_seat_moves_only_what_it_gets() -> None:
    before_LER = plan_copies(seats(4), 1, (1, 20))
    after_LER = plan_copies(seats(5), 1, (1, 20), before_LER)
    assert num_moves(before_LER, after_LER) == 4
    assert counts(after_LER[:, :, 0], 5) == [4, 4, 4, 4, 4]


def test_one_seat_less_moves_only_what_it_had() -> None:
    before_LER = plan_copies(seats(5), 1, (1, 20))
    after_LER = plan_copies(seats(4), 1, (1, 20), before_LER)
    assert num_moves(before_LER, after_LER) == 4


@pytest.mark.parametrize(
    ("num_shards", "num_replicas", "says"),
    [(2, 3, "above num_shards 2"), (0, 1, "1 or more"), (2, 0, "1 (no spare)"), (17, 1, "1 to 16")],
)
def test_impossible_scales_are_refused_with_the_reason(
    num_shards: int, num_replicas: int, says: str
) -> None:
    with pytest.raises(ConfigError, match=says.replace("(", r"\(").replace(")", r"\)")):
        check_scale(num_shards, num_replicas, 16)


scales = st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, min(n, 3))))


@settings(max_examples=200, deadline=None)
@given(st.lists(scales, min_size=1, max_size=5), st.integers(1, 3), st.integers(7, 19))
def test_every_plan_is_even_apart_and_stays_when_nothing_changes(
    scaled: list[tuple[int, int]], num_nodes: int, num_experts: int
) -> None:
    plan_LER: Int32 | None = None
    for num_seats, num_replicas in scaled:
        where = seats(num_seats, num_nodes)
        plan_LER = plan_copies(where, num_replicas, (1, num_experts), plan_LER)
        assert plan_LER.shape == (1, num_experts, num_replicas)
        for copies in plan_LER[0].tolist():
            assert len(set(copies)) == num_replicas
        held = np.bincount(plan_LER.ravel(), minlength=num_seats)
        assert held.max() - held.min() <= 1
        primaries = np.bincount(plan_LER[0, :, 0], minlength=num_seats)
        if num_replicas > 1 and held.min() > 0:
            assert primaries.max() - primaries.min() <= 2
        again_LER = plan_copies(where, num_replicas, (1, num_experts), plan_LER)
        assert num_moves(plan_LER, again_LER) == 0
