"""Rows by expert, fading with time."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.load_stats import LoadStats


def test_rows_are_counted_by_layer_and_expert() -> None:
    stats = LoadStats(2, 4)
    stats.observe(1, np.array([[0, 3], [3, 2]]))
    stats.observe(1, np.array([[3, 2]]))
    assert stats.rows_LE.tolist() == [[0, 0, 0, 0], [1, 0, 2, 3]]


def test_what_was_counted_halves_in_the_half_life_however_often_it_ages() -> None:
    often, once = LoadStats(1, 2, half_life_s=10.0), LoadStats(1, 2, half_life_s=10.0)
    for stats in (often, once):
        stats.observe(0, np.array([[1]] * 8))
    for second in range(1, 11):
        often.age(float(second))
    once.age(10.0)
    assert often.rows_LE[0, 1] == pytest.approx(4.0)
    assert once.rows_LE[0, 1] == pytest.approx(4.0)


def test_a_clock_that_goes_back_changes_nothing() -> None:
    stats = LoadStats(1, 1)
    stats.age(10.0)
    stats.observe(0, np.array([[0]]))
    stats.age(5.0)
    stats.age(10.0)
    assert stats.rows_LE[0, 0] == 1.0


def test_what_is_taken_is_counted_by_the_other_side_alone() -> None:
    rank, pool = LoadStats(1, 2), LoadStats(1, 2)
    rank.observe(0, np.array([[1]]))
    pool.add(rank.take())
    assert (rank.rows_LE.sum(), pool.rows_LE.sum()) == (0.0, 1.0)
