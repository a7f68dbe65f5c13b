"""Which shards should live, which do, and what the pool has to do about the difference.

A plain state machine: what was seen goes in with its time, what to do comes out. It knows no Ray,
no clock and no sockets. The lives of shards are kept by `cluster.roster`, who holds which expert by
`cluster.holdings`, and what scale is wanted by `cluster.scaling`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np

from cluster.balance import BalanceConfig
from cluster.holdings import Holdings
from cluster.load_plan import LoadPlanner
from cluster.load_stats import LoadLE
from cluster.members import Failure, Member, ShardState, progress_of
from cluster.placement import Placement
from cluster.planner import Seat, plan_copies
from cluster.pool_actions import Action, Hold, Kill, Publish, Spawn
from cluster.pool_messages import Scale, ShardKey, ShardReport, Target
from cluster.roster import Roster
from cluster.scale_operation import Operation
from cluster.scaling import Scaling
from cluster.seat_plan import SeatPlan
from cluster.types import PlacementVersion


class Membership:
    """The pool's view of its shards. One owner; not for several threads."""

    def __init__(self, num_moe_layers: int, num_experts: int, scale: Scale) -> None:
        self._scaling = Scaling(num_experts, scale)
        self.epoch = 1
        self.placement: Placement | None = None
        target = scale.target
        seats = [Seat(index) for index in range(target.num_shards)]
        shape = (num_moe_layers, num_experts)
        plan_LER = plan_copies(seats, target.num_replicas, shape)
        self.holdings = Holdings(num_moe_layers, num_experts, plan_LER)
        self._counter = 0
        self._roster = Roster()
        self._seats = SeatPlan(target, self._roster)
        self.num_ranks = 1
        self.num_moved_for_load = 0
        self.expert_bytes = 0.0
        """Of one expert of one layer as files hold it; 0 until a shard has loaded."""

    @property
    def scale(self) -> Scale:
        """What is wanted, and by whom."""
        return self._scaling.scale

    @property
    def operation(self) -> Operation | None:
        """The last change of scale."""
        return self._scaling.operation

    def adopt(self, reports: Iterable[ShardReport], starting: Iterable[ShardKey] = ()) -> None:
        """Take over the shards that an earlier pool left, under the next epoch and its scale.

        `starting` live and do not answer yet.
        """
        found = [Member(key, ShardState.JOINING) for key in starting]
        for report in reports:
            found.append(Member(report.key, ShardState.JOINING, report))
            self._adopt_scale(report)
        self._roster.adopt(found)
        for member in self._roster.members:
            if member.report is not None and member.report.ready:
                self._became_ready(member, member.report)
        target = self.scale.target
        self.holdings.adopt(self._seats.seats(target), target.num_replicas)
        self._seats.planned(target)

    def _adopt_scale(self, report: ShardReport) -> None:
        """Take the latest that any shard was told: a pool may die before it has told all."""
        is_later = report.scale.revision > self.scale.revision
        if report.epoch >= self.epoch or (report.epoch == self.epoch - 1 and is_later):
            self.epoch = report.epoch + 1
            self._scaling.adopt(report.scale)

    def outbid(self, seen_epoch: int) -> None:
        """Move above an epoch that a rank has seen and no shard survived to tell."""
        if seen_epoch >= self.epoch:
            self.epoch, self._counter, self._roster.changed = seen_epoch + 1, 0, True

    def reported(self, report: ShardReport, now_s: float = 0.0) -> None:
        """Take note of what a living shard said."""
        member = self._roster.find(report.key)
        if member is None or member.state is ShardState.DEAD:
            return
        moved = member.report is not None and member.report.address != report.address
        member.report = report
        if not report.ready:
            return
        if member.state is ShardState.JOINING:
            self._became_ready(member, report)
        elif report.sums_LE is not None and self.holdings.differs(report.key.index, report.sums_LE):
            self._roster.changed = True
            self._note_problem(member.key, self.holdings.reported(report.key.index, report.sums_LE))
        self._note_problem(member.key, report.problem)
        self._roster.changed = self._roster.changed or moved
        self._roster.judge(member, report.idle_s, now_s)

    def _became_ready(self, member: Member, report: ShardReport) -> None:
        assert report.sums_LE is not None
        problem = self.holdings.joined(report.key.index, report.sums_LE)
        num_held = np.count_nonzero(report.sums_LE)
        if not self.expert_bytes and num_held:
            self.expert_bytes = report.total_bytes / num_held
        self._roster.joined(member)
        self._note_problem(member.key, problem)

    def suspected(self, shard: int, incarnation: int, reason: str, now_s: float) -> None:
        """Take note that a rank lost this shard, or waits for it in vain."""
        member = self._roster.find(ShardKey(shard, incarnation))
        if member is not None:
            self._roster.suspect(member, reason, now_s)

    def _note_problem(self, key: ShardKey, problem: str) -> None:
        """A shard cannot load what it was told to: an operation under way is rolled back."""
        if problem:
            self._scaling.cannot_load(f"shard {key.index}: {problem}")

    def died(self, key: ShardKey, now_s: float, reason: str = "its process ended") -> None:
        """Take note that `key` is certainly gone; its seat is tried again."""
        member = self._roster.gone(key, reason, now_s)
        if member is None:
            return
        self._seats.refill(key.index)
        self.holdings.gone(key.index)
        if member.state is ShardState.JOINING:
            num_tries, told = self._roster.num_failures(key.index), self.failures[-1].reason
            self._scaling.does_not_start(key.index, num_tries, told)

    def rescale(self, configured: Target) -> None:
        """Take note of the configured target. Raises `ConfigError` when it is impossible."""
        if self._scaling.reconfigure(configured):
            self._roster.try_at_once()

    def scale_to(self, target: Target, operation_id: str) -> Operation:
        """Begin, or ask after, the operation that leads to `target`; asking twice changes nothing.

        The configuration counts again once it has changed. Raises `ConfigError` with the reason
        when `target` is impossible.
        """
        if self._scaling.scale_to(target, operation_id):
            self._roster.try_at_once()
        assert self.operation is not None
        return self.operation

    def kill(self, shard: int, incarnation: int | None, now_s: float) -> ShardKey:
        """Have the process of a shard ended without warning. Raises `NoSuchShardError`.

        `incarnation`: refuse when the seat has passed to another life; None: whoever is there.
        """
        key = self._roster.find_serving(shard, incarnation).key
        self._roster.doom(key, now_s)
        return key

    def drain(self, shard: int, incarnation: int | None) -> ShardKey:
        """Have the others take over all that a shard holds, then end it and start another one.

        A change of scale ends this. Raises `NoSuchShardError`, and `ConfigError` when the others
        are too few.
        """
        key = self._roster.find_serving(shard, incarnation).key
        self._seats.empty(shard, self.scale.target)
        return key

    def set_ranks_by_hand(self, by_hand: bool) -> None:
        """Take note of who decides on the number of ranks; shards keep it for the next pool."""
        if self._scaling.set_ranks_by_hand(by_hand):
            self._roster.changed = True

    def ranks_are(self, num_ranks: int) -> None:
        """Take note of how many attention ranks live; the next placement tells all of them."""
        if num_ranks != self.num_ranks:
            self.num_ranks, self._roster.changed = num_ranks, True

    def rebalance(
        self, load_LE: LoadLE, max_moves: int, config: BalanceConfig | None = None
    ) -> int:
        """Plan for the load that was seen; return how many copies move, at most `max_moves`.

        Only while nothing else is on its way. The moves are made like any others. Further copies,
        out of the target's budget, come before exchanges.
        """
        if not self.settled:
            return 0
        target = self.scale.target
        max_spares = int(target.replica_bytes / self.expert_bytes) if self.expert_bytes else 0
        limits = (max_spares, max_moves)
        planner = LoadPlanner(self._seats.seats(target), target.num_replicas, *limits, config)
        plan_LER, num_moves = planner.improve(self.holdings.plan_LER, load_LE)
        if not np.array_equal(plan_LER, self.holdings.plan_LER):
            self.holdings.follow(plan_LER)
            self._roster.changed = True
        self.num_moved_for_load += num_moves
        return num_moves

    def actions(self, now_s: float) -> list[Action]:
        """Return what has to be done now; each is returned once."""
        target = self.scale.target
        if self._seats.replan(target, self.holdings):
            self._roster.changed = True
        self._roster.keep(self._seats.wanted(target))
        actions = self._kills(now_s) + self._spawns(now_s)
        if self._roster.changed and self._roster.serving:
            self._roster.changed = False
            self.placement = self._next_placement(now_s)
            actions.append(Publish(self.placement))
        actions += self._orders(now_s)
        self._advance()
        return actions

    def _kills(self, now_s: float) -> list[Action]:
        seats = range(self.scale.target.num_shards)
        is_drained = partial(self.holdings.drained, now_s=now_s)
        return [Kill(key) for key in self._roster.give_up(seats, is_drained, now_s)]

    def _spawns(self, now_s: float) -> list[Action]:
        covered, spawns = self.covered, list[Action]()
        for seat in range(self.scale.target.num_shards):
            in_turn = covered and self._scaling.adds(seat)  # else somebody waits for it
            if (key := self._roster.start(seat, now_s, in_turn=in_turn)) is not None:
                spawns.append(Spawn(key, self.holdings.spawned(seat)))
        return spawns

    def _orders(self, now_s: float) -> list[Action]:
        orders: list[Action] = []
        for member in self._roster.serving:
            if member.state is ShardState.READY:
                holds_LE = self.holdings.order(member.key.index, now_s)
                if holds_LE is not None:
                    orders.append(Hold(member.key, holds_LE))
        return orders

    def _advance(self) -> None:
        target = self.scale.target
        serving = [member.key.index for member in self._roster.serving]
        starting = set(range(target.num_shards)) - set(serving)
        leaving = [each for each in self.members if each.key.index >= target.num_shards]
        missing = self.holdings.num_missing(serving)
        surplus = self.holdings.num_surplus(serving) + len(leaving)
        self._scaling.advance(len(starting), missing, surplus)

    def _next_placement(self, now_s: float) -> Placement:
        self._counter += 1
        serving = self._roster.serving
        seats = [member.key.index for member in serving]
        suspects = [each.key.index for each in serving if each.state is ShardState.SUSPECT]
        num_copies = max(self.scale.target.num_replicas, self.holdings.plan_LER.shape[2])
        copies_LEC = self.holdings.place(seats, suspects, num_copies, now_s)
        version = PlacementVersion(self.epoch, self._counter)
        shards = tuple(member.info for member in serving)
        return Placement(version, shards, copies_LEC, self.num_ranks)

    @property
    def members(self) -> list[Member]:
        """Every shard that lives or starts, by seat."""
        return self._roster.members

    @property
    def keys(self) -> list[ShardKey]:
        """Every shard that may live, in order."""
        return self._roster.keys

    @property
    def failures(self) -> Sequence[Failure]:
        """What went wrong lately, oldest first."""
        return self._roster.failures

    @property
    def covered(self) -> bool:
        """Whether every expert has a shard that serves and is not suspected."""
        return self.num_uncovered == 0

    @property
    def num_uncovered(self) -> int:
        """How many (layer, expert) have no shard that serves and is not suspected."""
        serving = self._roster.serving
        sure = [each.key.index for each in serving if each.state is not ShardState.SUSPECT]
        return int(np.count_nonzero(~self.holdings.held(sure)))

    @property
    def settled(self) -> bool:
        """Whether all that is wanted serves, as planned, unsuspected, and nothing else lives."""
        up = self._roster.serving
        serving = [each.key.index for each in up if each.state is ShardState.READY]
        alone = len(self.members) == len(serving) == self.scale.target.num_shards
        whole = self.holdings.num_missing(serving) == 0
        return alone and whole and self.holdings.num_surplus(serving) == 0

    def progress(self) -> str:
        """Return why the wanted shards do not serve yet: ``shard 3 of 8, 61 % of 1.9 GB``."""
        return progress_of(self.members, self.scale.target.num_shards)
