"""What a rank counts of its shards' answers."""

from __future__ import annotations

from cluster.dispatch_times import DispatchTimes, ShardTimes
from cluster.histogram import sum_s, total


def test_answers_add_up_by_shard() -> None:
    times = DispatchTimes()
    times.answered(0, (8, 3), 0.5, (100, 200))
    times.answered(0, (4, 2), 0.25, (10, 20))
    times.answered(3, (1, 1), 0.001, (1, 2))
    first, other = (ShardTimes.of(times.snapshot()[shard]) for shard in ("0", "3"))
    assert (first.rows, first.experts, first.queue_us, first.compute_us) == (12, 5, 110, 220)
    assert (total(first.latency), sum_s(first.latency)) == (2, 0.75)
    assert (other.rows, total(other.latency)) == (1, 1)


def test_a_snapshot_does_not_change_afterwards() -> None:
    times = DispatchTimes()
    times.answered(0, (8, 3), 0.5, (100, 200))
    before = times.snapshot()
    times.answered(0, (8, 3), 0.5, (100, 200))
    assert ShardTimes.of(before["0"]).rows == 8


def test_snapshots_of_two_ranks_add_up_number_by_number() -> None:
    one, two, both = DispatchTimes(), DispatchTimes(), DispatchTimes()
    for each, seconds in ((one, 0.5), (two, 0.125)):
        for times in (each, both):
            times.answered(0, (8, 3), seconds, (100, 200))
    added = [a + b for a, b in zip(one.snapshot()["0"], two.snapshot()["0"], strict=True)]
    assert added == both.snapshot()["0"]


def test_waiting_is_kept_by_layer() -> None:
    times = DispatchTimes()
    times.waited(2, 0.001)
    times.waited(2, 0.002)
    times.waited(0, 0.5)
    assert times.waited_us == {2: 3000, 0: 500_000}
