"""Numbers of the pool: who lives, what is covered, what moved and what failed. Pure.

L MoE layers, E experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from cluster.load_stats import LoadLE
from cluster.members import ShardState
from cluster.membership import Membership
from cluster.metric_spec import Kind, MetricSpec, Sample, Source
from cluster.placement import Placement
from cluster.pool_actions import Action, Spawn
from cluster.pool_messages import ShardKey, SumsLE
from cluster.scale_operation import Phase


def _gauge(name: str, unit: str, text: str, *labels: str) -> MetricSpec:
    return MetricSpec(f"trinity_{name}", Kind.GAUGE, Source.POOL, unit, text, labels)


def _counter(name: str, unit: str, text: str, *labels: str) -> MetricSpec:
    return MetricSpec(f"trinity_{name}", Kind.COUNTER, Source.POOL, unit, text, labels)


POOL_SPECS = (
    _gauge("shards", "shards", "Expert shards by state.", "state"),
    _gauge("shards_wanted", "shards", "Expert shards that there shall be."),
    _gauge("ranks", "ranks", "Attention ranks that ask the pool for news."),
    _gauge("experts_uncovered", "experts", "(layer, expert) pairs that no sure shard serves."),
    _gauge("copies_to_load", "copies", "Planned copies of experts that are not loaded yet."),
    _gauge("copies_to_free", "copies", "Copies of experts that are held and no longer planned."),
    _gauge("placement_epoch", "epochs", "Pool starts, as placements count them."),
    _gauge("placement_counter", "placements", "Placements published in this epoch."),
    _gauge("scale_operation", "flag", "1 for the phase of the last change of scale.", "phase"),
    _gauge("balance", "ratio", "Rows of a layer's busiest shard over its mean; mean of layers."),
    _counter("copies_moved", "copies", "Copies of experts that serving shards loaded."),
    _counter("bytes_moved", "bytes", "Bytes of those copies."),
    _counter("copies_moved_for_load", "copies", "Copies planned elsewhere, or anew, for load."),
    _counter("shard_starts", "shards", "Starts of a shard's process by the pool.", "shard"),
    _counter("shard_failures", "failures", "Losses, hangs and failed starts of a shard.", "shard"),
)


class PoolMetrics:
    """Counts what a pool's turns do. Used by one thread."""

    def __init__(self) -> None:
        self._starts: Counter[int] = Counter()
        self._failures: Counter[int] = Counter()
        self._num_moved = 0
        self._last_failure_s = -np.inf
        self._sums: dict[ShardKey, SumsLE] = {}

    def turn(self, membership: Membership, actions: Iterable[Action]) -> None:
        """Take note of what was seen and of what is done about it."""
        self._starts.update(each.key.index for each in actions if isinstance(each, Spawn))
        fresh = [each for each in membership.failures if each.at_s > self._last_failure_s]
        self._failures.update(each.shard for each in fresh)
        self._last_failure_s = max([self._last_failure_s, *(each.at_s for each in fresh)])
        for member in membership.members:
            if member.report is not None and member.report.sums_LE is not None:
                self._note_held(member.key, member.report.sums_LE)
        living = {member.key for member in membership.members}
        self._sums = {key: sums_LE for key, sums_LE in self._sums.items() if key in living}

    def _note_held(self, key: ShardKey, sums_LE: SumsLE) -> None:
        before_LE = self._sums.get(key)
        if before_LE is sums_LE:
            return
        if before_LE is not None:
            self._num_moved += int(np.count_nonzero((sums_LE != 0) & (before_LE == 0)))
        self._sums[key] = sums_LE

    def samples(self, membership: Membership, rows_LE: LoadLE) -> Iterator[Sample]:
        """Yield every number of the pool as it is now."""
        states = Counter(member.state for member in membership.members)
        for state in ShardState:
            yield Sample("trinity_shards", states[state], {"state": state})
        phase = None if membership.operation is None else membership.operation.phase
        for each in Phase:
            yield Sample("trinity_scale_operation", each is phase, {"phase": each})
        for shard in range(membership.scale.target.num_shards):
            labels = {"shard": f"{shard}"}
            yield Sample("trinity_shard_starts", self._starts[shard], labels)
            yield Sample("trinity_shard_failures", self._failures[shard], labels)
        yield from self._plain(membership, rows_LE)

    def _plain(self, membership: Membership, rows_LE: LoadLE) -> Iterator[Sample]:
        serving = membership.holdings.sizes()
        numbers = {
            "shards_wanted": membership.scale.target.num_shards,
            "ranks": membership.num_ranks,
            "experts_uncovered": membership.num_uncovered,
            "copies_to_load": membership.holdings.num_missing(serving),
            "copies_to_free": membership.holdings.num_surplus(serving),
            "copies_moved": self._num_moved,
            "bytes_moved": self._num_moved * membership.expert_bytes,
            "copies_moved_for_load": membership.num_moved_for_load,
        }
        if (placement := membership.placement) is not None:
            numbers["placement_epoch"] = placement.version.epoch
            numbers["placement_counter"] = placement.version.counter
            numbers["balance"] = balance(placement, rows_LE)
        for name, value in numbers.items():
            yield Sample(f"trinity_{name}", value)


def balance(placement: Placement, rows_LE: LoadLE) -> float:
    """Return the rows of a layer's busiest shard over the mean, mean of layers; 0 without rows."""
    first_LE, num_shards = placement.copies_LEC[:, :, 0], len(placement.shards)
    shares = []
    for owner_E, rows_E in zip(first_LE, rows_LE, strict=True):
        held_E = owner_E >= 0
        rows_S = np.bincount(owner_E[held_E], rows_E[held_E], minlength=num_shards)
        if rows_S.sum() > 0:
            shares.append(rows_S.max() / rows_S.mean())
    return float(np.mean(shares)) if shares else 0.0
