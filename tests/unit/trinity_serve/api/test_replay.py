"""A choice lets each token through once, whatever becomes of its attempts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trinity_serve.api.replay import MAX_LOSSES, MAX_PAUSE_S, STREAM_LOST_S, ChoiceReplay, Verdict
from trinity_serve.engine.request import (
    FinishReason,
    GenerationRequest,
    SamplingParams,
    TokenEvent,
)

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def choice() -> ChoiceReplay:
    params = SamplingParams(max_tokens=8, seed=1)
    return ChoiceReplay(GenerationRequest("r", 0, (1, 2), params, trace=TRACE))


def token(index: int, attempt: int = 0, finish: FinishReason | None = None) -> TokenEvent:
    return TokenEvent("r", 0, attempt, index, 100 + index, finish=finish)


def test_a_replay_goes_on_from_what_was_emitted() -> None:
    replay = choice()
    replay.accept(token(0))
    replay.accept(token(1))
    replay.attempt_lost()
    assert replay.verdict(0.0) is Verdict.REPLAY
    request = replay.next_attempt()
    assert (request.attempt, request.emitted_ids, request.trace) == (1, (100, 101), TRACE)
    assert replay.verdict(0.0) is Verdict.WAIT
    assert replay.accept(token(2, attempt=1)) is not None


def test_a_late_event_of_an_earlier_attempt_is_dropped() -> None:
    replay = choice()
    replay.attempt_left()
    replay.next_attempt()
    assert replay.accept(token(0, attempt=0)) is None
    assert replay.accept(token(0, attempt=1)) is not None


def test_a_repeated_event_is_dropped_and_a_gap_breaks_the_attempt() -> None:
    replay = choice()
    replay.accept(token(0))
    assert replay.accept(token(0)) is None
    assert replay.verdict(0.0) is Verdict.WAIT
    assert replay.accept(token(2)) is None
    assert replay.verdict(0.0) is Verdict.REPLAY


def test_nothing_follows_the_end() -> None:
    replay = choice()
    replay.accept(token(0, finish=FinishReason.LENGTH))
    assert replay.finished
    assert replay.accept(token(1)) is None
    replay.attempt_lost()
    assert replay.verdict(9.0) is Verdict.WAIT


def test_an_end_that_nobody_asked_for_is_replayed_and_not_shown() -> None:
    replay = choice()
    assert replay.accept(TokenEvent("r", 0, 0, 0, None, finish=FinishReason.CANCELLED)) is None
    assert replay.verdict(0.0) is Verdict.REPLAY


def test_a_lost_stream_is_waited_for_a_while() -> None:
    replay = choice()
    replay.quiet(1.0)
    assert replay.verdict(1.0 + STREAM_LOST_S - 0.1) is Verdict.WAIT
    replay.heard()
    assert replay.verdict(99.0) is Verdict.WAIT
    replay.quiet(100.0)
    replay.quiet(101.0)
    assert replay.verdict(100.0 + STREAM_LOST_S) is Verdict.REPLAY


def test_a_choice_that_loses_rank_after_rank_is_given_up() -> None:
    replay = choice()
    for _ in range(MAX_LOSSES - 1):
        replay.attempt_lost()
        assert replay.verdict(0.0) is Verdict.REPLAY
        replay.next_attempt()
    replay.attempt_lost()
    assert replay.verdict(0.0) is Verdict.GIVE_UP


def test_a_choice_that_gets_on_between_its_losses_is_not_given_up() -> None:
    replay = choice()
    for index in range(3 * MAX_LOSSES):
        replay.accept(token(index, index))
        replay.attempt_lost()
        assert replay.verdict(0.0) is Verdict.REPLAY
        assert replay.pause_s == 0.0
        replay.next_attempt()


def test_losses_without_a_token_between_are_followed_by_ever_longer_pauses() -> None:
    replay = choice()
    pauses = []
    for _ in range(MAX_LOSSES - 1):
        replay.attempt_lost()
        pauses.append(replay.pause_s)
        replay.next_attempt()
    assert pauses == [0.0, 0.25, 0.5, 1.0, MAX_PAUSE_S, MAX_PAUSE_S, MAX_PAUSE_S]


def test_an_event_from_a_stream_thought_lost_starts_the_wait_again() -> None:
    replay = choice()
    replay.spoke(0.5)
    replay.quiet(1.0)
    replay.spoke(2.0)
    assert replay.verdict(2.0 + STREAM_LOST_S - 0.1) is Verdict.WAIT
    assert replay.verdict(2.0 + STREAM_LOST_S) is Verdict.REPLAY


def test_leaving_ranks_are_never_held_against_a_choice() -> None:
    replay = choice()
    for _ in range(3 * MAX_LOSSES):
        replay.attempt_left()
        assert replay.verdict(0.0) is Verdict.REPLAY
        replay.next_attempt()


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 9))))
def test_emitted_tokens_are_always_the_sequence_without_gap_or_repetition(
    events: list[tuple[bool, int, int]],
) -> None:
    replay = choice()
    seen = []
    for replayed, attempt, index in events:
        if replayed:
            replay.attempt_left()
            replay.next_attempt()
        event = replay.accept(token(index, attempt))
        seen += [] if event is None else [event.index]
    assert seen == list(range(len(seen)))
