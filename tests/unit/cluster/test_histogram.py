"""Buckets of plain integers say what Prometheus' histograms say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.histogram import BOUNDS_S, add_time, cumulative, empty_counts, sum_s, total

TIMES = st.lists(st.floats(min_value=0.0, max_value=1000.0), max_size=20)


@given(TIMES)
def test_each_bound_has_the_values_below_it_and_the_last_has_all(times: list[float]) -> None:
    counts = empty_counts()
    for seconds in times:
        add_time(counts, seconds)
    *bounded, (last, number) = cumulative(counts)
    assert (last, number) == ("+Inf", len(times)) == (last, total(counts))
    for (text, below), bound_s in zip(bounded, BOUNDS_S, strict=True):
        assert float(text) == pytest.approx(bound_s, rel=1e-5)
        # A bucket is counted by whole microseconds: its bound itself falls into the next one.
        assert below == sum(int(seconds * 1e6) < round(bound_s * 1e6) for seconds in times)


def test_a_value_counts_as_often_as_it_is_said_to() -> None:
    counts = empty_counts()
    add_time(counts, 0.002, times=3)
    assert total(counts) == 3
    assert sum_s(counts) == pytest.approx(0.006)


def test_the_bounds_reach_from_a_quick_call_to_a_minute() -> None:
    assert BOUNDS_S[0] == pytest.approx(64e-6)
    assert BOUNDS_S[-1] > 60.0
