"""How many calls may be sent twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.budget import HedgeBudget


def test_a_burst_may_come_at_once_and_then_a_share_of_the_calls() -> None:
    budget = HedgeBudget(0.25, burst=2)
    assert [budget.take(0) for _ in range(3)] == [True, True, False]
    assert [budget.take(3), budget.take(4), budget.take(5)] == [False, True, False]


def test_quiet_times_save_up_no_more_than_the_burst() -> None:
    budget = HedgeBudget(0.25, burst=2)
    assert [budget.take(1000) for _ in range(3)] == [True, True, False]


@given(
    share=st.floats(0.0, 1.0),
    burst=st.integers(1, 10),
    steps=st.lists(st.integers(0, 200), max_size=60),
)
def test_hedges_never_exceed_the_burst_and_the_share_of_the_calls(
    share: float, burst: int, steps: list[int]
) -> None:
    budget, calls, hedges = HedgeBudget(share, burst), 0, 0
    for more in steps:
        calls += more
        hedges += budget.take(calls)
        assert hedges <= burst + share * calls + 1e-6


@pytest.mark.parametrize("calls", [0, 10_000])
def test_without_a_share_only_the_burst_is_there(calls: int) -> None:
    budget = HedgeBudget(0.0, burst=1)
    assert [budget.take(calls), budget.take(calls)] == [True, False]
