"""Silence, and what does not count as silence."""

from __future__ import annotations

import pytest

from cluster.errors import LinkLostError
from cluster.transport.liveness import LinkMonitor
from cluster.wire import Busy, Ping, Pong


def monitor() -> LinkMonitor:
    return LinkMonitor(0.0, "shard 3", ping_every_s=0.5, dead_after_s=1.5)


def polled(link: LinkMonitor, start_s: float, end_s: float) -> list[Ping]:
    """Poll every 0.1 s, as a loop that is never away does."""
    times = [start_s + 0.1 * turn for turn in range(round((end_s - start_s) / 0.1))]
    return [ping for now_s in times if (ping := link.poll(now_s)) is not None]


def test_a_ping_goes_out_every_half_second_each_with_its_own_nonce() -> None:
    link = monitor()
    link.heard(Pong(0), 0.0)
    assert polled(link, 0.0, 1.45) == [Ping(1), Ping(2), Ping(3)]


def test_silence_over_the_limit_is_a_lost_link_that_names_the_peer() -> None:
    link = monitor()
    polled(link, 0.0, 1.5)
    with pytest.raises(LinkLostError, match=r"shard 3.*silent"):
        link.poll(1.51)


def test_any_frame_is_a_sign_of_life() -> None:
    link = monitor()
    for second in range(1, 20):
        polled(link, second - 1, second)
        link.heard(Ping(second), float(second))


def test_a_busy_peer_is_given_the_time_it_asked_for_and_no_more() -> None:
    link = monitor()
    link.heard(Busy(for_us=4_000_000), 0.0)
    polled(link, 0.0, 5.5)
    with pytest.raises(LinkLostError):
        link.poll(5.51)


def test_a_frame_after_busy_ends_the_busy_time() -> None:
    link = monitor()
    link.heard(Busy(for_us=60_000_000), 0.0)
    link.heard(Pong(1), 1.0)
    polled(link, 1.0, 2.5)
    with pytest.raises(LinkLostError):
        link.poll(2.51)


def test_a_monitor_that_was_away_itself_judges_only_after_a_fresh_wait() -> None:
    link = monitor()
    link.poll(0.1)
    assert link.poll(9.0) is not None
    polled(link, 9.1, 10.5)
    with pytest.raises(LinkLostError):
        link.poll(10.6)


def test_a_loop_that_wakes_just_after_each_interval_still_finds_a_silent_peer() -> None:
    link = monitor()
    for turn in range(1, 3):
        link.poll(turn * 0.51)
    with pytest.raises(LinkLostError):
        link.poll(3 * 0.51)
