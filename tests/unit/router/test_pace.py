"""From when on a call counts as late."""

from __future__ import annotations

import math

import pytest

from router.pace import LEAST_CALLS, WINDOW, Pace

KEY = (0, 1)


def noted(times_s: list[float], num_rows: int = 8, floor_s: float = 0.05) -> Pace:
    pace = Pace(3.0, floor_s)
    for took_s in times_s:
        pace.note(KEY, num_rows, took_s)
    return pace


def test_a_shard_that_was_not_measured_often_enough_is_never_late() -> None:
    assert noted([]).limit_s(KEY, 8) == math.inf
    assert noted([0.1] * (LEAST_CALLS - 1)).limit_s(KEY, 8) == math.inf
    assert noted([0.1] * LEAST_CALLS).limit_s(KEY, 8) == pytest.approx(0.3)


def test_the_limit_is_a_multiple_of_what_99_of_100_calls_took_and_never_below_the_floor() -> None:
    assert noted([0.001] * 100).limit_s(KEY, 8) == 0.05
    assert noted([0.02] * 99 + [9.0]).limit_s(KEY, 8) == pytest.approx(0.06)
    assert noted([0.02] * 98 + [9.0] * 2).limit_s(KEY, 8) == pytest.approx(27.0)


def test_only_the_last_calls_count() -> None:
    assert noted([9.0] * WINDOW + [0.02] * WINDOW).limit_s(KEY, 8) == pytest.approx(0.06)


def test_sizes_of_equally_many_binary_digits_share_a_limit_and_shards_do_not() -> None:
    pace = noted([0.1] * LEAST_CALLS, num_rows=8)
    pace.note(KEY, 16, 0.7)
    assert pace.limit_s(KEY, 8) == pace.limit_s(KEY, 15) == pytest.approx(0.3)
    assert pace.limit_s((0, 2), 8) == math.inf


def test_a_size_that_was_seen_too_rarely_goes_by_the_next_larger_or_the_largest_scaled() -> None:
    pace = noted([0.1] * LEAST_CALLS, num_rows=8)
    for _ in range(LEAST_CALLS):
        pace.note(KEY, 100, 0.4)
    pace.note(KEY, 3, 0.001)
    assert [pace.limit_s(KEY, rows) for rows in (1, 3)] == pytest.approx([0.3, 0.3])
    assert pace.limit_s(KEY, 40) == pytest.approx(1.2)
    assert pace.limit_s(KEY, 300) == pytest.approx(4 * 1.2)


def test_a_shard_that_has_become_slow_is_measured_by_the_quickest_of_its_size() -> None:
    pace = noted([0.9] * WINDOW)
    assert pace.limit_s(KEY, 8) == pytest.approx(2.7)
    for _ in range(WINDOW):
        pace.note((1, 1), 8, 0.02)
        pace.note((2, 1), 8, 0.5)
        pace.note((3, 1), 2, 0.01)
    assert pace.limit_s(KEY, 8) == pytest.approx(3 * 4 * 0.02)
    # Slower, but not by so much: its own pace counts.
    assert pace.limit_s((1, 1), 8) == pytest.approx(0.06)
    pace.forget((1, 1))
    assert pace.limit_s(KEY, 8) == pytest.approx(3 * 4 * 0.04)
    pace.forget((3, 1))
    assert pace.limit_s(KEY, 8) == pytest.approx(2.7)
    assert pace.limit_s((2, 1), 8) == pytest.approx(1.5)


def test_a_shard_that_is_lost_is_forgotten() -> None:
    pace = noted([0.1] * LEAST_CALLS)
    pace.forget(KEY)
    pace.forget(KEY)
    assert pace.limit_s(KEY, 8) == math.inf
