"""One life of a shard as its pool sees it, and what is remembered of lives that ended. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from cluster.placement import ShardInfo
from cluster.pool_messages import ShardKey, ShardReport
from cluster.types import ShardId


class ShardState(StrEnum):
    """A shard's life as the pool sees it."""

    JOINING = "joining"
    """Starts or loads; no row goes there."""
    READY = "ready"
    SUSPECT = "suspect"
    """A rank lost it or waits for it; its copies come last."""
    DRAINING = "draining"
    """Is not wanted any more, and serves until others do."""
    DEAD = "dead"
    """Given up, and not known to be gone; its seat stays empty until it is."""


SERVING = (ShardState.READY, ShardState.SUSPECT, ShardState.DRAINING)


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that went wrong, for people."""

    at_s: float
    shard: int
    incarnation: int
    reason: str


@dataclass(slots=True)
class Member:
    """One life of a shard."""

    key: ShardKey
    state: ShardState
    report: ShardReport | None = None
    started_at_s: float = -math.inf
    """When this pool had it started."""
    suspected_at_s: float = 0.0
    kill_told_at_s: float = -math.inf
    unlisted_at_s: float | None = None
    """When the placement stopped to name it at all; ranks then close their links."""

    @property
    def reads(self) -> bool:
        """Whether it has its imports done and has begun to read its slice."""
        return self.report is not None and self.report.total_bytes > 0

    @property
    def domain(self) -> tuple[str, ...]:
        """What can fail around it, as far as it is known."""
        return () if self.report is None else (self.report.label, self.report.node)

    @property
    def info(self) -> ShardInfo:
        """How a placement names it, once it has loaded."""
        assert self.report is not None
        domain = "/".join(part for part in self.domain if part)
        key = self.key
        return ShardInfo(ShardId(key.index), self.report.address, key.incarnation, domain)


@dataclass(slots=True)
class Respawn:
    """When the next try at a seat is due; grows with each failure before it was ready."""

    failures: int = 0
    due_s: float = 0.0


def progress_of(members: Iterable[Member], count: int) -> str:
    """Return why `count` shards do not serve yet: ``shard 3 of 8, 61 % of 1.9 GB``."""
    members = [member for member in members if member.key.index < count]
    num_ready = sum(member.state in SERVING for member in members)
    if num_ready == count:
        return f"{count} of {count} shards ready"
    reports = [member.report for member in members if member.report is not None]
    problems = [report.problem for report in reports if report.problem]
    if problems:
        return problems[0]
    total_bytes = sum(report.total_bytes for report in reports)
    loaded_bytes = sum(report.loaded_bytes for report in reports)
    share = loaded_bytes / total_bytes if total_bytes else 0.0
    size_gb = total_bytes / 1e9
    return f"STARTING: shard {num_ready + 1} of {count}, {100 * share:.0f} % of {size_gb:.1f} GB"
