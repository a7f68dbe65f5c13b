"""Which seats hold experts, and when that is planned anew."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.errors import ConfigError
from cluster.holdings import Holdings
from cluster.planner import plan_copies
from cluster.pool_messages import Target
from cluster.roster import Roster
from cluster.seat_plan import SeatPlan

SHAPE = (2, 8)


def planned(target: Target) -> tuple[SeatPlan, Holdings]:
    plan = SeatPlan(target, Roster())
    plan_LER = plan_copies(plan.seats(target), target.num_replicas, SHAPE)
    return plan, Holdings(*SHAPE, plan_LER)


def seats_of(holdings: Holdings) -> list[int]:
    return [int(seat) for seat in np.unique(holdings.plan_LER)]


def test_nothing_is_planned_anew_while_nothing_has_changed() -> None:
    target = Target(3)
    plan, holdings = planned(target)
    assert not plan.replan(target, holdings)
    assert plan.replan(Target(4), holdings)
    assert seats_of(holdings) == [0, 1, 2, 3]
    assert not plan.replan(Target(4), holdings)


def test_a_seat_that_is_emptied_holds_nothing_until_it_is_refilled() -> None:
    target = Target(3)
    plan, holdings = planned(target)
    plan.empty(1, target)
    assert plan.replan(target, holdings)
    assert (plan.wanted(target), seats_of(holdings)) == ([0, 2], [0, 2])
    plan.refill(1)
    assert plan.replan(target, holdings)
    assert seats_of(holdings) == [0, 1, 2]


def test_a_change_of_scale_ends_what_was_asked_for_by_hand() -> None:
    plan, holdings = planned(Target(3))
    plan.empty(1, Target(3))
    plan.replan(Target(4), holdings)
    assert plan.wanted(Target(4)) == [0, 1, 2, 3]


def test_no_more_seats_are_emptied_than_copies_can_do_without() -> None:
    target = Target(2, num_replicas=2)
    plan, _ = planned(target)
    with pytest.raises(ConfigError):
        plan.empty(0, target)
    assert plan.wanted(target) == [0, 1]
