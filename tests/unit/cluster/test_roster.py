"""The lives of shards, seat by seat, with time passed in."""

from __future__ import annotations

import pytest

from cluster.errors import NoSuchShardError
from cluster.members import Member, ShardState
from cluster.pool_messages import Scale, ShardKey, ShardReport, Target
from cluster.roster import (
    HUNG_S,
    KILL_AGAIN_S,
    STALLED_S,
    START_S,
    SUSPECT_S,
    UNLISTED_S,
    Roster,
)


def roster_of(num_seats: int) -> Roster:
    """All of its shards are ready."""
    roster = Roster()
    for seat in range(num_seats):
        assert roster.start(seat, 0.0, in_turn=False) is not None
        roster.joined(member_at(roster, seat))
    roster.changed = False
    return roster


def state_at(roster: Roster, seat: int) -> ShardState:
    return member_at(roster, seat).state


def member_at(roster: Roster, seat: int) -> Member:
    member = roster.at(seat)
    assert member is not None
    return member


def test_a_seat_has_one_life_at_a_time_and_never_the_same_again() -> None:
    roster = roster_of(2)
    assert roster.start(0, 0.0, in_turn=False) is None
    first = member_at(roster, 0).key
    assert roster.gone(first, "it ended", 1.0) is not None
    again = roster.start(0, 1.0, in_turn=False)
    assert again is not None
    assert (again.index, again > first, roster.find(first)) == (0, True, None)
    assert roster.gone(first, "said twice", 1.0) is None
    assert [failure.reason for failure in roster.failures] == ["it ended"]


def test_in_turn_a_shard_starts_when_the_one_before_reads_or_takes_too_long() -> None:
    roster = roster_of(1)
    assert roster.start(1, 1.0, in_turn=True) is not None
    assert roster.start(2, 1.1, in_turn=True) is None
    first = member_at(roster, 1)
    scale = Scale.of(Target(3))
    first.report = ShardReport(first.key, False, 0, 0, "", "node", 1, scale)
    assert roster.start(2, 1.2, in_turn=True) is None
    first.report = ShardReport(first.key, False, 1, 10, "", "node", 1, scale)
    assert roster.start(2, 1.3, in_turn=True) is not None
    assert roster.start(3, 1.4, in_turn=True) is None
    assert roster.start(3, 1.3 + START_S, in_turn=True) is not None


def test_of_two_lives_found_on_a_seat_the_older_is_ended() -> None:
    roster = Roster()
    old, new = ShardKey(0, 3), ShardKey(0, 7)
    roster.adopt([Member(new, ShardState.JOINING), Member(old, ShardState.JOINING)])
    assert roster.keys == [old, new]
    assert roster.give_up(range(1), lambda seat: False, 0.0) == [old]
    roster.gone(old, "it ended", 0.1)
    assert [member.key for member in roster.members] == [new]


def test_a_loop_that_hangs_is_suspected_cleared_when_it_turns_and_else_given_up() -> None:
    roster = roster_of(1)
    member = member_at(roster, 0)
    roster.judge(member, HUNG_S, 1.0)
    assert state_at(roster, 0) is ShardState.SUSPECT
    roster.judge(member, STALLED_S - 0.1, 1.1)
    assert state_at(roster, 0) is ShardState.READY
    roster.judge(member, HUNG_S, 2.0)
    assert roster.give_up(range(1), lambda seat: False, 2.0) == []
    assert roster.give_up(range(1), lambda seat: False, 2.0 + SUSPECT_S) == [member.key]
    assert roster.give_up(range(1), lambda seat: False, 3.0 + SUSPECT_S) == []
    again_s = 2.0 + SUSPECT_S + KILL_AGAIN_S
    assert roster.give_up(range(1), lambda seat: False, again_s) == [member.key]


def test_who_is_not_wanted_serves_until_drained_and_is_ended_after_it_was_unlisted() -> None:
    roster = roster_of(2)
    roster.keep([0])
    leaving = member_at(roster, 1)
    assert (leaving.state, leaving in roster.serving) == (ShardState.DRAINING, True)
    roster.changed = False
    assert roster.give_up(range(1), lambda seat: False, 0.0) == []
    assert leaving in roster.serving
    assert roster.give_up(range(1), lambda seat: True, 1.0) == []
    assert leaving not in roster.serving
    roster.changed = False
    roster.give_up(range(1), lambda seat: True, 1.0 + UNLISTED_S)
    assert leaving.state is ShardState.DEAD


def test_a_shard_that_serves_is_found_and_the_others_are_named() -> None:
    roster = roster_of(2)
    key = member_at(roster, 1).key
    assert roster.find_serving(1, None).key == key
    assert roster.find_serving(1, key.incarnation).key == key
    with pytest.raises(NoSuchShardError, match=r"No shard 1 of incarnation 99 .*: 0\.1, 1\.2\."):
        roster.find_serving(1, 99)
