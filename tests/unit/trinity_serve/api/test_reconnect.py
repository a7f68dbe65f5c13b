"""When a rank tries an ingress again: times are made up."""

from __future__ import annotations

from trinity_serve.api.reconnect import (
    FIRST_PAUSE_S,
    LOST_AFTER_S,
    MAX_PAUSE_S,
    STOOD_AFTER_S,
    ReconnectPace,
)


def test_a_stream_that_had_stood_is_opened_again_at_once() -> None:
    assert ReconnectPace(0.0).ended(STOOD_AFTER_S, 10.0) == 0.0


def test_pauses_double_up_to_their_bound_while_streams_are_refused() -> None:
    pace = ReconnectPace(0.0)
    pauses = [pace.ended(lasted_s, 0.0) for lasted_s in (0.0, 0.001, 0.5, 0.0, 0.0, 0.0)]
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[3:] == [MAX_PAUSE_S] * 3
    assert pace.ended(60.0, 0.0) == 0.0
    assert pace.ended(0.0, 0.0) == FIRST_PAUSE_S


def test_an_ingress_that_only_refuses_is_lost_after_few_attempts() -> None:
    pace, now_s, attempts = ReconnectPace(100.0), 100.0, 0
    while not pace.is_lost(now_s):
        now_s += pace.ended(0.0, now_s)
        attempts += 1
    assert LOST_AFTER_S <= now_s - 100.0 < LOST_AFTER_S + MAX_PAUSE_S
    assert attempts < 10


def test_a_stream_that_stood_puts_the_loss_off() -> None:
    pace = ReconnectPace(0.0)
    pace.ended(50.0, 50.0)
    assert not pace.is_lost(50.0 + LOST_AFTER_S - 0.1)
    assert pace.is_lost(50.0 + LOST_AFTER_S)
