"""Who is asked last, and until when."""

from __future__ import annotations

import pytest

from router.suspects import Suspects, pause_s

KEY, OTHER = (0, 1), (1, 1)


def late_and_answered(times: int) -> Suspects:
    """A shard that was late so often in a row; the last answer came at 100 s."""
    suspects = Suspects()
    for _ in range(times):
        suspects.late(KEY)
        suspects.answered(KEY, in_time=False, now_s=100.0)
    return suspects


@pytest.mark.parametrize("in_time", [True, False])
def test_a_suspect_is_trusted_again_with_its_next_answer(in_time: bool) -> None:
    suspects = Suspects()
    suspects.late(KEY)
    assert not suspects.answered(OTHER, in_time=True, now_s=100.0)
    assert suspects.keys == {KEY}
    assert suspects.answered(KEY, in_time, now_s=100.0)
    assert suspects.keys == frozenset()


def test_one_that_is_late_again_and_again_stays_suspect_for_twice_as_long_each_time() -> None:
    assert [pause_s(times) for times in range(1, 6)] == [0.0, 0.25, 0.5, 1.0, 2.0]
    assert pause_s(8) == pause_s(10_000) == 16.0
    suspects = late_and_answered(3)
    assert not suspects.tend(100.4)
    assert suspects.keys == {KEY}
    assert suspects.tend(100.5)
    assert not suspects.tend(100.5)
    assert suspects.keys == frozenset()


def test_further_late_answers_do_not_prolong_it() -> None:
    suspects = late_and_answered(2)
    assert not suspects.answered(KEY, in_time=False, now_s=100.2)
    assert suspects.tend(100.25)


def test_an_answer_in_time_ends_suspicion_and_count_at_once() -> None:
    suspects = late_and_answered(4)
    assert suspects.answered(KEY, in_time=True, now_s=100.1)
    assert not suspects
    suspects.late(KEY)
    assert suspects.answered(KEY, in_time=False, now_s=101.0)


def test_the_count_outlasts_the_suspicion_until_an_answer_comes_in_time() -> None:
    suspects = late_and_answered(1)
    assert suspects
    suspects.answered(KEY, in_time=True, now_s=101.0)
    assert not suspects


def test_a_shard_that_is_lost_is_forgotten() -> None:
    suspects = late_and_answered(2)
    assert suspects.forget(KEY)
    assert not suspects.forget(KEY)
    assert not suspects
