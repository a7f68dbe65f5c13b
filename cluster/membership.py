"""Which shards should live, which do, and what the pool has to do about the difference.

A plain state machine: what was seen goes in with its time, what to do comes out. It knows no Ray,
no clock and no sockets. One generation of shards (all slices of one count) serves; a generation
with another count is loaded beside it and takes over whole, so that scaling never uncovers an
expert.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from cluster.placement import Placement, ShardInfo
from cluster.types import PlacementVersion, ShardId, ShardSlice

DRAIN_S = 5.0
"""How long a replaced generation lives on, for rows in flight under the old placement."""
MAX_BACKOFF_S = 10.0


@dataclass(frozen=True, slots=True, order=True)
class ShardKey:
    """Names one life of one shard: slice `index` of `count`, and which try at it this is."""

    count: int
    index: int
    incarnation: int

    def actor_name(self, app: str) -> str:
        """Return the name under which the shard is found again after a pool restart."""
        return f"ExpertShard:{app}:{self.index}of{self.count}:{self.incarnation}"

    @classmethod
    def from_actor_name(cls, name: str, app: str) -> ShardKey | None:
        """Return the key in `name`, or None when it does not name a shard of `app`."""
        prefix = f"ExpertShard:{app}:"
        if not name.startswith(prefix):
            return None
        place, _, incarnation = name.removeprefix(prefix).partition(":")
        index, _, count = place.partition("of")
        return cls(int(count), int(index), int(incarnation))


class ShardState(StrEnum):
    """A shard's life as the pool sees it."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Scale:
    """How many shards there shall be, and the configured number that this was decided under."""

    num_shards: int
    configured: int

    def reconfigured(self, configured: int) -> Scale:
        """Return the scale after the configuration says `configured`.

        The configuration counts when it has changed; otherwise what was found stays.
        """
        return self if configured == self.configured else Scale(configured, configured)


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What a shard says about itself; the state a restarted pool finds again."""

    key: ShardKey
    ready: bool
    loaded_bytes: int
    total_bytes: int
    address: str
    node: str
    epoch: int
    scale: Scale
    token: str = ""
    """What a rank has to present."""
    problem: str = ""
    """Why it cannot load; such a shard ends itself."""


@dataclass(frozen=True, slots=True)
class Spawn:
    """Create the shard `key`."""

    key: ShardKey


@dataclass(frozen=True, slots=True)
class Kill:
    """End the shard `key` and be sure that it is gone."""

    key: ShardKey


@dataclass(frozen=True, slots=True)
class Publish:
    """Let every rank have `placement`."""

    placement: Placement


Action = Spawn | Kill | Publish


@dataclass(slots=True)
class _Member:
    key: ShardKey
    state: ShardState
    report: ShardReport | None = None
    drained_at_s: float = 0.0


@dataclass(slots=True)
class _Respawn:
    """When the next try at a slice is due; grows with each failure before it was ready."""

    failures: int = 0
    due_s: float = 0.0


class Membership:
    """The pool's view of its shards. One owner; not for several threads."""

    def __init__(self, num_moe_layers: int, num_experts: int, scale: Scale) -> None:
        self._num_moe_layers = num_moe_layers
        self._num_experts = num_experts
        self.scale = scale
        self.epoch = 1
        self.placement: Placement | None = None
        self._counter = 0
        self._serving_count = scale.num_shards
        self._last_incarnation = 0
        self._members: dict[tuple[int, int], _Member] = {}
        self._draining: list[_Member] = []
        self._respawns: dict[tuple[int, int], _Respawn] = {}
        self._changed = True

    def adopt(self, reports: Iterable[ShardReport], starting: Iterable[ShardKey] = ()) -> None:
        """Take over the shards that an earlier pool left, under the next epoch and its scale.

        `starting` live and do not answer yet.
        """
        for key in sorted(starting):
            self._last_incarnation = max(self._last_incarnation, key.incarnation)
            self._members[key.count, key.index] = _Member(key, ShardState.STARTING)
        for report in sorted(reports, key=lambda each: each.key):
            state = ShardState.READY if report.ready else ShardState.LOADING
            place = (report.key.count, report.key.index)
            rival = self._members.get(place)
            if rival is not None:
                rival.state = ShardState.DRAINING
                self._draining.append(rival)
            self._members[place] = _Member(report.key, state, report)
            self._last_incarnation = max(self._last_incarnation, report.key.incarnation)
            if report.epoch >= self.epoch:
                self.epoch, self.scale = report.epoch + 1, report.scale
        self._serving_count = self._best_count()

    def _best_count(self) -> int:
        """Return the count of a generation that is wholly ready, else the wanted one."""
        counts = sorted({count for count, _ in self._members}, reverse=True)
        whole = [count for count in counts if self._whole(count)]
        return self.scale.num_shards if self.scale.num_shards in whole or not whole else whole[0]

    def outbid(self, seen_epoch: int) -> None:
        """Move above an epoch that a rank has seen and no shard survived to tell."""
        if seen_epoch >= self.epoch:
            self.epoch, self._counter, self._changed = seen_epoch + 1, 0, True

    def reported(self, report: ShardReport) -> None:
        """Take note of what a living shard said."""
        member = self._members.get((report.key.count, report.key.index))
        if member is None or member.key != report.key:
            return
        became_ready = report.ready and member.state is not ShardState.READY
        moved = member.report is not None and member.report.address != report.address
        member.report = report
        member.state = ShardState.READY if report.ready else ShardState.LOADING
        if became_ready:
            self._respawns.pop((report.key.count, report.key.index), None)
        if report.key.count == self._serving_count:
            self._changed = self._changed or became_ready or moved

    def died(self, key: ShardKey, now_s: float) -> None:
        """Take note that `key` is certainly gone; its slice is tried again."""
        self._draining = [member for member in self._draining if member.key != key]
        place = (key.count, key.index)
        member = self._members.get(place)
        if member is None or member.key != key:
            return
        del self._members[place]
        respawn = self._respawns.setdefault(place, _Respawn())
        if member.state is not ShardState.READY:
            respawn.failures += 1
            respawn.due_s = now_s + min(0.5 * 2.0**respawn.failures, MAX_BACKOFF_S)
        elif key.count == self._serving_count:
            self._changed = True

    def rescale(self, configured: int) -> None:
        """Take note of the configured number of shards."""
        self.scale = self.scale.reconfigured(configured)

    def actions(self, now_s: float) -> list[Action]:
        """Return what has to be done now; each is returned once."""
        self._take_over(now_s)
        actions = self._spawns(now_s) + self._kills(now_s)
        if self._changed and self._members_of(self._serving_count, ShardState.READY):
            self._changed = False
            self.placement = self._next_placement()
            actions.append(Publish(self.placement))
        return actions

    def _take_over(self, now_s: float) -> None:
        """Switch to the wanted generation once it is whole; drop generations nobody wants."""
        wanted = self.scale.num_shards
        if wanted != self._serving_count and (
            self._whole(wanted) or not self._members_of(self._serving_count, None)
        ):
            self._serving_count, self._changed = wanted, True
        for place, member in list(self._members.items()):
            if place[0] not in (wanted, self._serving_count):
                del self._members[place]
                member.state, member.drained_at_s = ShardState.DRAINING, now_s + DRAIN_S
                self._draining.append(member)

    def _spawns(self, now_s: float) -> list[Action]:
        actions: list[Action] = []
        for count in sorted({self._serving_count, self.scale.num_shards}):
            for index in range(count):
                respawn = self._respawns.get((count, index), _Respawn())
                if (count, index) not in self._members and respawn.due_s <= now_s:
                    self._last_incarnation += 1
                    key = ShardKey(count, index, self._last_incarnation)
                    self._members[count, index] = _Member(key, ShardState.STARTING)
                    actions.append(Spawn(key))
        return actions

    def _kills(self, now_s: float) -> list[Action]:
        due = [member for member in self._draining if member.drained_at_s <= now_s]
        self._draining = [member for member in self._draining if member not in due]
        return [Kill(member.key) for member in due]

    def _next_placement(self) -> Placement:
        self._counter += 1
        ready = self._members_of(self._serving_count, ShardState.READY)
        copies_LEC = np.full((self._num_moe_layers, self._num_experts, 1), -1, dtype=np.int32)
        shards = []
        for position, member in enumerate(ready):
            assert member.report is not None
            held = ShardSlice(member.key.index, member.key.count).experts(self._num_experts)
            copies_LEC[:, held.start : held.stop, 0] = position
            shards.append(
                ShardInfo(
                    ShardId(member.key.index),
                    member.report.address,
                    member.key.incarnation,
                    member.report.node,
                )
            )
        return Placement(PlacementVersion(self.epoch, self._counter), tuple(shards), copies_LEC)

    def _members_of(self, count: int, state: ShardState | None) -> list[_Member]:
        return [
            member
            for (its_count, _), member in sorted(self._members.items())
            if its_count == count and (state is None or member.state is state)
        ]

    def _whole(self, count: int) -> bool:
        return len(self._members_of(count, ShardState.READY)) == count

    @property
    def keys(self) -> list[ShardKey]:
        """Every shard that lives or starts, in order."""
        living = [member.key for member in self._members.values()]
        return sorted(living + [member.key for member in self._draining])

    @property
    def covered(self) -> bool:
        """Whether every expert has a ready shard."""
        return self._whole(self._serving_count)

    @property
    def settled(self) -> bool:
        """Whether the wanted generation serves, whole, and nothing else lives."""
        wanted = self.scale.num_shards
        alone = len(self._members) == wanted and not self._draining
        return self._serving_count == wanted and self._whole(wanted) and alone

    def progress(self) -> str:
        """Return why the wanted shards do not serve yet: ``shard 3 of 8, 61 % of 1.9 GB``."""
        count = self.scale.num_shards
        members = self._members_of(count, None)
        ready = [member for member in members if member.state is ShardState.READY]
        if len(ready) == count:
            return f"{count} of {count} shards ready"
        reports = [member.report for member in members if member.report is not None]
        problems = [report.problem for report in reports if report.problem]
        if problems:
            return problems[0]
        total_bytes = sum(report.total_bytes for report in reports)
        loaded_bytes = sum(report.loaded_bytes for report in reports)
        share = loaded_bytes / total_bytes if total_bytes else 0.0
        size_gb = total_bytes / 1e9
        return (
            f"STARTING: shard {len(ready) + 1} of {count}, {100 * share:.0f} % of {size_gb:.1f} GB"
        )
