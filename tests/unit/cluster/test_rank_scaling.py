"""How many ranks: by waiting tokens and KV, after a delay, within bounds."""

from __future__ import annotations

import pytest

from cluster.pool_messages import RankLoad
from cluster.rank_scaling import RankPolicy, RankScaling

POLICY = RankPolicy(1, 4, waiting_tokens=1000, kv_usage=0.9, up_after_s=5.0, down_after_s=60.0)
IDLE = RankLoad(0, 0.0)


def after(seconds: float, *loads: RankLoad, policy: RankPolicy = POLICY) -> int | None:
    """What is wanted when these loads have lasted for so long."""
    scaling = RankScaling(policy)
    assert scaling.wanted(loads, 100.0) is None
    return scaling.wanted(loads, 100.0 + seconds)


def test_tokens_that_wait_ask_for_more_ranks_once_they_have_waited_for_a_while() -> None:
    busy = RankLoad(1800, 0.2)
    assert after(4.9, busy) is None
    assert after(5.0, busy) == 2


def test_full_kv_asks_for_more_ranks_though_nothing_waits() -> None:
    assert after(5.0, RankLoad(0, 0.95), RankLoad(0, 0.95)) == 3


def test_ranks_at_most_double_and_stay_within_the_bounds() -> None:
    assert after(5.0, RankLoad(90_000, 1.0)) == 2
    assert after(5.0, *[RankLoad(90_000, 1.0)] * 3) == 4
    assert after(5.0, *[RankLoad(90_000, 1.0)] * 4) is None


def test_idle_ranks_go_one_by_one_after_the_longer_delay() -> None:
    assert after(59.0, IDLE, IDLE, IDLE) is None
    assert after(60.0, IDLE, IDLE, IDLE) == 2
    assert after(60.0, IDLE) is None


def test_a_rank_stays_while_the_others_would_be_half_full_without_it() -> None:
    assert after(60.0, RankLoad(0, 0.3), RankLoad(0, 0.3)) is None


def test_a_short_burst_changes_nothing_and_begins_anew() -> None:
    scaling, busy = RankScaling(POLICY), RankLoad(5000, 0.5)
    assert scaling.wanted([busy], 0.0) is None
    assert scaling.wanted([RankLoad(100, 0.5)], 4.0) is None
    assert scaling.wanted([busy], 5.0) is None
    assert scaling.wanted([busy], 9.0) is None
    assert scaling.wanted([busy], 10.0) == 2


def test_after_a_change_the_load_has_to_last_again() -> None:
    scaling, busy = RankScaling(POLICY), RankLoad(5000, 0.5)
    scaling.wanted([busy], 0.0)
    assert scaling.wanted([busy], 5.0) == 2
    assert scaling.wanted([busy], 6.0) is None


@pytest.mark.parametrize("max_ranks", [0, 1])
def test_without_room_the_number_stays(max_ranks: int) -> None:
    policy = RankPolicy(1, max_ranks)
    scaling = RankScaling(policy)
    for now_s in (0.0, 100.0):
        assert scaling.wanted([RankLoad(90_000, 1.0)], now_s) is None
