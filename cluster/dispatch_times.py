"""What one rank saw of its shards: rows, experts, and how long answers took.

Written by the rank's one thread with plain integers; any thread may read a snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.histogram import Counts, add_time, empty_counts

_NUM_SUMS = 4


@dataclass(frozen=True, slots=True)
class ShardTimes:
    """Of one shard, since the rank started."""

    rows: int
    """(token, expert) rows that came back."""
    experts: int
    """Experts that calls asked for: each is read once per call."""
    queue_us: int
    compute_us: int
    """As the shard tells them in its replies."""
    latency: Sequence[int]
    """From sending a call to its reply; see `cluster.histogram`."""

    @classmethod
    def of(cls, numbers: Sequence[int]) -> ShardTimes:
        """Read what `DispatchTimes.snapshot` wrote."""
        rows, experts, queue_us, compute_us, *latency = numbers
        return cls(rows, experts, queue_us, compute_us, latency)


class DispatchTimes:
    """Times of one rank's expert calls."""

    def __init__(self) -> None:
        self._shards: dict[int, tuple[list[int], Counts]] = {}
        self._waited_us: dict[int, int] = {}

    def answered(
        self, shard: int, asked: tuple[int, int], seconds: float, told_us: tuple[int, int]
    ) -> None:
        """Count a reply to a call for `asked` (rows, experts) after `seconds`.

        `told_us`: (in the shard's queue, computing), by its own clock.
        """
        if shard not in self._shards:
            self._shards[shard] = ([0] * _NUM_SUMS, empty_counts())
        sums, latency = self._shards[shard]
        sums[0] += asked[0]
        sums[1] += asked[1]
        sums[2] += told_us[0]
        sums[3] += told_us[1]
        add_time(latency, seconds)

    def waited(self, moe_layer: int, seconds: float) -> None:
        """Count the time for which the rank had nothing to do but wait for a layer's rows."""
        self._waited_us[moe_layer] = self._waited_us.get(moe_layer, 0) + int(seconds * 1e6)

    @property
    def waited_us(self) -> Mapping[int, int]:
        """Waiting time by MoE layer since the start; grows."""
        return self._waited_us

    def snapshot(self) -> dict[str, list[int]]:
        """Return, by shard number, what `ShardTimes.of` reads; sums of it over ranks mean that."""
        return {str(shard): [*sums, *counts] for shard, (sums, counts) in self._shards.items()}
