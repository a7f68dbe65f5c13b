"""A rank knows what each shard answered, how long that took, and how long it had to wait."""

from __future__ import annotations

from cluster.dispatch_times import ShardTimes
from cluster.histogram import sum_s, total
from tests.fakes.shard_world import FakeRank
from tests.support.dispatching import (
    ALTERNATING,
    REPLICATED,
    TOPK_IDS,
    assert_rows_are_right,
    two_shards,
)


def times_of(rank: FakeRank) -> dict[str, ShardTimes]:
    snapshot = rank.metrics.times.snapshot()
    return {shard: ShardTimes.of(numbers) for shard, numbers in snapshot.items()}


def test_rows_experts_and_replies_are_counted_by_shard(rank: FakeRank) -> None:
    two_shards(rank, ALTERNATING)
    for layer in (0, 1):
        assert_rows_are_right(rank, layer)
    times = times_of(rank)
    odd = int((TOPK_IDS % 2).sum())
    even = TOPK_IDS.size - odd
    assert (times["0"].rows, times["1"].rows) == (2 * even, 2 * odd)
    assert (times["0"].experts, times["1"].experts) == (2 * 4, 2 * 4)
    assert [total(each.latency) for each in times.values()] == [2, 2]


def test_a_late_answer_is_a_long_latency_of_that_shard_and_waiting_of_that_layer(
    rank: FakeRank,
) -> None:
    first, _ = two_shards(rank, ALTERNATING)
    first.answers.append(first.late(0.2))
    assert_rows_are_right(rank, layer=1)
    times = times_of(rank)
    assert sum_s(times["0"].latency) >= 0.2 > sum_s(times["1"].latency)
    waited_us = rank.metrics.times.waited_us
    assert waited_us.keys() == {1}
    assert waited_us[1] >= 200_000


def test_a_lost_attempt_is_no_answer(rank: FakeRank) -> None:
    first, second = two_shards(rank, REPLICATED)
    first.answers.append(first.die_at_call)
    assert_rows_are_right(rank)
    times = times_of(rank)
    assert times.keys() == {"1"}
    assert times["1"].rows == TOPK_IDS.size
    assert second.calls
