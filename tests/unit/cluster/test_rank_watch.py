"""Who has asked the pool for news lately, with time passed in."""

from __future__ import annotations

from cluster.pool_messages import RankLoad, RankSight
from cluster.rank_watch import RANK_SILENT_S, SUBSCRIPTION_S, RankWatch


def test_a_rank_counts_with_its_last_load_until_it_is_silent_for_too_long() -> None:
    watch = RankWatch()
    watch.seen(RankSight("a", None, 0, RankLoad(100, 0.5)), 0.0)
    watch.seen(RankSight("b", None, 0, RankLoad(7, 0.1)), 1.0)
    watch.seen(RankSight("a", None, 0, RankLoad(0, 0.2)), 2.0)
    assert watch.loads(2.0) == [RankLoad(0, 0.2), RankLoad(7, 0.1)]
    assert watch.loads(1.0 + RANK_SILENT_S) == [RankLoad(0, 0.2)]
    assert watch.loads(2.0 + RANK_SILENT_S) == []


def test_a_subscription_ends_unless_it_is_renewed() -> None:
    watch = RankWatch()
    watch.subscribed("b", 0.0)
    watch.subscribed("a", 1.0)
    watch.subscribed("b", 2.0)
    assert watch.subscribers(1.0 + SUBSCRIPTION_S) == ("a", "b")
    assert watch.subscribers(1.5 + SUBSCRIPTION_S) == ("b",)
    assert watch.subscribers(2.5 + SUBSCRIPTION_S) == ()
