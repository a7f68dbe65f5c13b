"""Who is asked last, and until when."""

from __future__ import annotations

from router.suspects import FORGIVEN_AFTER_S, Suspects, pause_s

KEY, OTHER = (0, 1), (1, 1)


def late_and_answered(times: int) -> Suspects:
    """A shard that was late so often; its last answer came at 100 s."""
    suspects = Suspects()
    for _ in range(times):
        suspects.late(KEY, 99.9)
        suspects.answered(KEY, 100.0)
    return suspects


def test_a_suspect_is_trusted_again_with_its_next_answer() -> None:
    suspects = Suspects()
    suspects.late(KEY, 100.0)
    assert not suspects.answered(OTHER, 100.1)
    assert not suspects.tend(1000.0)
    assert suspects.keys == {KEY}
    assert suspects.answered(KEY, 1000.0)
    assert suspects.keys == frozenset()
    assert not suspects


def test_one_that_is_late_again_and_again_stays_suspect_for_twice_as_long_each_time() -> None:
    assert [pause_s(times) for times in range(1, 6)] == [0.0, 0.25, 0.5, 1.0, 2.0]
    assert pause_s(8) == pause_s(10_000) == 16.0
    suspects = late_and_answered(3)
    assert not suspects.tend(100.4)
    assert suspects.keys == {KEY}
    assert suspects.tend(100.5)
    assert not suspects.tend(100.5)
    assert suspects.keys == frozenset()


def test_calls_that_are_late_at_the_same_time_count_once() -> None:
    suspects = Suspects()
    for _ in range(4):
        suspects.late(KEY, 100.0)
    assert suspects.answered(KEY, 100.1)


def test_further_answers_neither_prolong_nor_end_it() -> None:
    suspects = late_and_answered(2)
    assert not suspects.answered(KEY, 100.2)
    assert suspects.keys == {KEY}
    assert suspects.tend(100.25)


def test_a_shard_that_was_not_late_for_long_enough_since_begins_anew() -> None:
    suspects = late_and_answered(2)
    suspects.tend(101.0)
    suspects.late(KEY, 100.25 + FORGIVEN_AFTER_S + 0.1)
    assert suspects.answered(KEY, 111.0)
    suspects.late(KEY, 112.0)
    assert not suspects.answered(KEY, 113.0)


def test_a_shard_that_is_lost_is_forgotten() -> None:
    suspects = late_and_answered(2)
    assert suspects.forget(KEY)
    assert not suspects.forget(KEY)
    suspects.late(KEY, 101.0)
    assert suspects.answered(KEY, 102.0)
