"""Counters of what the system did, named in one table.

One `Metrics` object is made by each process and passed to the parts that count; `/metrics` and the
Ray metrics shell read snapshots of it. Each name is counted by one thread only.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from cluster.dispatch_times import DispatchTimes


class Metric(StrEnum):
    """Every counter, with its meaning."""

    DISPATCH_CALLS = "dispatch_calls"
    DISPATCH_ROWS = "dispatch_rows"
    DISPATCH_RETRIES = "dispatch_retries"
    LATE_REPLIES = "late_replies"
    SHARDS_LOST = "shards_lost"
    NON_FINITE_REPLIES = "non_finite_replies"
    COVERAGE_STALLS = "coverage_stalls"
    ISOLATED_CALLS = "isolated_calls"
    HEDGED_CALLS = "hedged_calls"
    HEDGES_WON = "hedges_won"
    HEDGES_REFUSED = "hedges_refused"
    COLLECTIVE_GROUPS = "collective_groups"
    COLLECTIVE_DROPS = "collective_drops"
    COLLECTIVE_FRAMES = "collective_frames"
    COLLECTIVE_RESENT = "collective_resent"


HELP: Mapping[Metric, str] = {
    Metric.DISPATCH_CALLS: "Expert calls sent to shards",
    Metric.DISPATCH_ROWS: "(token, expert) rows sent to shards",
    Metric.DISPATCH_RETRIES: "Expert calls sent again after a failed attempt",
    Metric.LATE_REPLIES: "Replies that came after their attempt was given up, and were dropped",
    Metric.SHARDS_LOST: "Times a shard's link was lost or given up",
    Metric.NON_FINITE_REPLIES: "Layers whose expert rows held NaN or infinity",
    Metric.COVERAGE_STALLS: "Times rows had to wait for an expert without a living shard",
    Metric.ISOLATED_CALLS: "Expert calls sent with one request's rows after a second crash",
    Metric.HEDGED_CALLS: "Late expert calls whose rows were asked of other copies too",
    Metric.HEDGES_WON: "Late expert calls that other copies answered first",
    Metric.HEDGES_REFUSED: "Late expert calls that waited on: too many had been hedged already",
    Metric.COLLECTIVE_GROUPS: "Groups for rows that a rank and a shard built and confirmed",
    Metric.COLLECTIVE_DROPS: "Confirmed groups that were dropped at an error or missed deadline",
    Metric.COLLECTIVE_FRAMES: "Expert calls whose rows went by a group",
    Metric.COLLECTIVE_RESENT: "Expert calls whose rows were sent again over the base link",
}


class Metrics:
    """One process's counters."""

    def __init__(self) -> None:
        self._counts: dict[Metric, int] = dict.fromkeys(Metric, 0)
        self.times = DispatchTimes()

    def inc(self, metric: Metric, amount: int = 1) -> None:
        """Add to a counter."""
        self._counts[metric] += amount

    def __getitem__(self, metric: Metric) -> int:
        return self._counts[metric]

    def snapshot(self) -> dict[Metric, int]:
        """Return a copy of all counters."""
        return dict(self._counts)
