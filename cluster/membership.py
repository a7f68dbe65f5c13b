"""Which shards should live, which do, and what the pool has to do about the difference.

A plain state machine: what was seen goes in with its time, what to do comes out. It knows no Ray,
no clock and no sockets. A shard sits on a seat, which its replacement takes over; who holds which
expert is kept by `cluster.holdings`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from cluster.balance import BalanceConfig, rebalance
from cluster.errors import NoSuchShardError
from cluster.holdings import Holdings
from cluster.load_stats import LoadLE
from cluster.members import SERVING, Failure, Member, Respawn, ShardState, progress_of
from cluster.placement import Placement, ShardInfo
from cluster.planner import Seat, check_scale, plan_copies
from cluster.pool_actions import Action, Hold, Kill, Publish, Spawn
from cluster.pool_messages import Scale, ShardKey, ShardReport, Target
from cluster.scale_operation import Operation
from cluster.scaling import Scaling
from cluster.spares import plan_spares
from cluster.types import PlacementVersion, ShardId

MAX_BACKOFF_S = 10.0
SUSPECT_S = 1.0
"""A suspect that has not shown for so long that it makes turns is ended."""
STALLED_S = 1.0
"""A suspect whose compute loop made a turn within so long is cleared."""
HUNG_S = 3.0
"""A compute loop without a turn for so long is suspected, whatever ranks say."""
KILL_AGAIN_S = 10.0
"""A shard that is told to end and is not gone after so long is told again."""
UNLISTED_S = 1.0
"""How long a shard lives on after the placement has left it out."""
KEPT_FAILURES = 20


class Membership:
    """The pool's view of its shards. One owner; not for several threads."""

    def __init__(self, num_moe_layers: int, num_experts: int, scale: Scale) -> None:
        self._scaling = Scaling(num_experts, scale)
        self.epoch = 1
        self.placement: Placement | None = None
        self.failures: deque[Failure] = deque(maxlen=KEPT_FAILURES)
        target = scale.target
        seats = [Seat(index) for index in range(target.num_shards)]
        shape = (num_moe_layers, num_experts)
        plan_LER = plan_copies(seats, target.num_replicas, shape)
        self.holdings = Holdings(num_moe_layers, num_experts, plan_LER)
        self._planned_for: tuple[Target, tuple[Seat, ...]] = (target, tuple(seats))
        self._counter = 0
        self._last_incarnation = 0
        self._members: dict[int, Member] = {}
        self._rivals: list[Member] = []
        """Older lives of seats, found by a new pool; they are ended."""
        self._respawns: dict[int, Respawn] = {}
        self._doomed: list[ShardKey] = []
        """Killed by hand: nothing else is told of it, it is found out like any death."""
        self._emptied: set[int] = set()
        """Seats whose shard is drained by hand, until it is gone."""
        self._changed = True
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
            if report.epoch >= self.epoch:
                self.epoch = report.epoch + 1
                self._scaling.adopt(report.scale)
        for member in sorted(found, key=lambda each: each.key):
            rival = self._members.get(member.key.index)
            if rival is not None:
                rival.state = ShardState.DEAD
                self._rivals.append(rival)
            self._members[member.key.index] = member
            self._last_incarnation = max(self._last_incarnation, member.key.incarnation)
        for member in self._members.values():
            if member.report is not None and member.report.ready:
                self._became_ready(member, member.report)
        self.holdings.adopt(self._seats(), self.scale.target.num_replicas)
        self._planned_for = (self.scale.target, tuple(self._seats()))

    def outbid(self, seen_epoch: int) -> None:
        """Move above an epoch that a rank has seen and no shard survived to tell."""
        if seen_epoch >= self.epoch:
            self.epoch, self._counter, self._changed = seen_epoch + 1, 0, True

    def reported(self, report: ShardReport, now_s: float = 0.0) -> None:
        """Take note of what a living shard said."""
        member = self._members.get(report.key.index)
        if member is None or member.key != report.key or member.state is ShardState.DEAD:
            return
        moved = member.report is not None and member.report.address != report.address
        member.report = report
        if not report.ready:
            return
        if member.state is ShardState.JOINING:
            self._became_ready(member, report)
        elif report.sums_LE is not None and self.holdings.differs(report.key.index, report.sums_LE):
            self._changed = True
            self._note_problem(member.key, self.holdings.reported(report.key.index, report.sums_LE))
        self._note_problem(member.key, report.problem)
        self._changed = self._changed or moved
        self._judge(member, report, now_s)

    def _became_ready(self, member: Member, report: ShardReport) -> None:
        assert report.sums_LE is not None
        index = report.key.index
        if index in self.holdings.sizes():
            problem = self.holdings.reported(index, report.sums_LE)
        else:
            problem = self.holdings.found(index, report.sums_LE)
        num_held = np.count_nonzero(report.sums_LE)
        if not self.expert_bytes and num_held:
            self.expert_bytes = report.total_bytes / num_held
        member.state = ShardState.READY
        self._respawns.pop(index, None)
        self._changed = True
        self._note_problem(member.key, problem)

    def _judge(self, member: Member, report: ShardReport, now_s: float) -> None:
        """Clear a suspect that makes turns; suspect one that makes none."""
        if member.state is ShardState.SUSPECT and report.idle_s < STALLED_S:
            member.state, self._changed = ShardState.READY, True
        elif member.state is ShardState.READY and report.idle_s >= HUNG_S:
            self._suspect(member, f"no turn for {report.idle_s:.1f} s", now_s)

    def suspected(self, shard: int, incarnation: int, reason: str, now_s: float) -> None:
        """Take note that a rank lost this shard, or waits for it in vain."""
        member = self._members.get(shard)
        if member is not None and member.key.incarnation == incarnation:
            self._suspect(member, reason, now_s)

    def _suspect(self, member: Member, reason: str, now_s: float) -> None:
        if member.state is ShardState.READY:
            member.state, member.suspected_at_s = ShardState.SUSPECT, now_s
            self._changed = True
            self._note_failure(member.key, reason, now_s)

    def _note_failure(self, key: ShardKey, reason: str, now_s: float) -> None:
        self.failures.append(Failure(now_s, key.index, key.incarnation, reason))

    def _note_problem(self, key: ShardKey, problem: str) -> None:
        """A shard cannot load what it was told to: an operation under way is rolled back."""
        if problem:
            self._scaling.cannot_load(f"shard {key.index}: {problem}")

    def died(self, key: ShardKey, now_s: float, reason: str = "its process ended") -> None:
        """Take note that `key` is certainly gone; its seat is tried again."""
        self._rivals = [member for member in self._rivals if member.key != key]
        member = self._members.get(key.index)
        if member is None or member.key != key:
            return
        del self._members[key.index]
        self._emptied.discard(key.index)
        self.holdings.gone(key.index)
        for leaving in self._members.values():  # may be the only copies again
            leaving.unlisted_at_s = None
        if member.state is ShardState.DRAINING:
            self._changed = True
            return
        if member.state is not ShardState.DEAD:
            told = member.report.problem if member.report is not None else ""
            self._note_failure(key, told or reason, now_s)
        if member.state is ShardState.JOINING:
            self._joining_failed(member, now_s)
        elif member.state is not ShardState.DEAD:  # else it was taken out of the placement then
            self._changed = True

    def _joining_failed(self, member: Member, now_s: float) -> None:
        respawn = self._respawns.setdefault(member.key.index, Respawn())
        respawn.failures += 1
        respawn.due_s = now_s + min(0.5 * 2.0**respawn.failures, MAX_BACKOFF_S)
        reason = self.failures[-1].reason
        self._scaling.does_not_start(member.key.index, respawn.failures, reason)

    def rescale(self, configured: Target) -> None:
        """Take note of the configured target. Raises `ConfigError` when it is impossible."""
        if self._scaling.reconfigure(configured):
            self._respawns.clear()

    def scale_to(self, target: Target, operation_id: str) -> Operation:
        """Begin, or ask after, the operation that leads to `target`; asking twice changes nothing.

        The configuration counts again once it has changed. Raises `ConfigError` with the reason
        when `target` is impossible.
        """
        if self._scaling.scale_to(target, operation_id):
            self._respawns.clear()
        assert self.operation is not None
        return self.operation

    def kill(self, shard: int, incarnation: int | None, now_s: float) -> ShardKey:
        """Have the process of a shard ended without warning. Raises `NoSuchShardError`.

        `incarnation`: refuse when the seat has passed to another life; None: whoever is there.
        """
        key = self._serving_shard(shard, incarnation).key
        self._doomed.append(key)
        self._note_failure(key, "killed by hand", now_s)
        return key

    def drain(self, shard: int, incarnation: int | None) -> ShardKey:
        """Have the others take over all that a shard holds, then end it and start another one.

        A change of scale ends this. Raises `NoSuchShardError`, and `ConfigError` when the others
        are too few.
        """
        member, target = self._serving_shard(shard, incarnation), self.scale.target
        num_left = len({*range(target.num_shards)} - self._emptied - {shard})
        check_scale(num_left, target.num_replicas)
        self._emptied.add(shard)
        return member.key

    def _serving_shard(self, shard: int, incarnation: int | None) -> Member:
        serving = self._serving()
        for member in serving:
            if member.key.index == shard and incarnation in (None, member.key.incarnation):
                return member
        names = ", ".join(f"{each.key.index}.{each.key.incarnation}" for each in serving)
        raise NoSuchShardError(shard, incarnation, names)

    def set_ranks_by_hand(self, by_hand: bool) -> None:
        """Take note of who decides on the number of ranks; shards keep it for the next pool."""
        if by_hand != self.scale.ranks_by_hand:
            self._scaling.scale = replace(self.scale, ranks_by_hand=by_hand)
            self._changed = True

    def ranks_are(self, num_ranks: int) -> None:
        """Take note of how many attention ranks live; the next placement tells all of them."""
        if num_ranks != self.num_ranks:
            self.num_ranks, self._changed = num_ranks, True

    def rebalance(
        self, load_LE: LoadLE, max_moves: int, config: BalanceConfig | None = None
    ) -> int:
        """Plan for the load that was seen; return how many copies move, at most `max_moves`.

        Only while nothing else is on its way. The moves are made like any others. Further copies,
        out of the target's budget, come before exchanges.
        """
        if not self.settled:
            return 0
        target, seats = self.scale.target, self._seats()
        plan_LER, num_new = self.holdings.plan_LER, 0
        max_spares = int(target.replica_bytes / self.expert_bytes) if self.expert_bytes else 0
        if max_spares or plan_LER.shape[2] > target.num_replicas:
            limits = (max_spares, max_moves)
            plan_LER, num_new = plan_spares(plan_LER, target.num_replicas, load_LE, seats, limits)
        plan_LER, num_moves = rebalance(plan_LER, load_LE, seats, max_moves - num_new, config)
        if not np.array_equal(plan_LER, self.holdings.plan_LER):
            self.holdings.follow(plan_LER)
            self._changed = True
        self.num_moved_for_load += num_new + num_moves
        return num_new + num_moves

    def actions(self, now_s: float) -> list[Action]:
        """Return what has to be done now; each is returned once."""
        self._replan()
        doomed, self._doomed = self._doomed, []
        actions: list[Action] = [Kill(key) for key in doomed]
        actions += self._kills(now_s) + self._spawns(now_s)
        if self._changed and self._serving():
            self._changed = False
            self.placement = self._next_placement(now_s)
            actions.append(Publish(self.placement))
        actions += self._orders(now_s)
        self._advance()
        return actions

    def _seats(self) -> list[Seat]:
        seats = []
        for index in self._wanted():
            member = self._members.get(index)
            seats.append(Seat(index, () if member is None else member.domain))
        return seats

    def _wanted(self) -> list[int]:
        """Return the seats whose shard is to hold experts."""
        return [seat for seat in range(self.scale.target.num_shards) if seat not in self._emptied]

    def _replan(self) -> None:
        """Plan anew when the target or the seats have changed, or all domains are known and others.

        A drain that a change of scale meets is given up: there might be too few for both.
        """
        planned_target, planned_seats = self._planned_for
        if self.scale.target != planned_target:
            self._emptied.clear()
        target, seats = self.scale.target, tuple(self._seats())
        others = [seat.index for seat in seats] != [seat.index for seat in planned_seats]
        learnt = seats != planned_seats and all(seat.domain for seat in seats)
        if target != planned_target or others or (learnt and self.holdings.could_be_parted(seats)):
            self.holdings.replan(seats, target.num_replicas)
            self._planned_for = (target, seats)
            self._changed = True
        for index, member in self._members.items():
            wanted = index < target.num_shards and index not in self._emptied
            if not wanted and member.state in (ShardState.READY, ShardState.SUSPECT):
                member.state, self._changed = ShardState.DRAINING, True
            elif wanted and member.state is ShardState.DRAINING:
                member.state, self._changed = ShardState.READY, True
                member.unlisted_at_s = None

    def _kills(self, now_s: float) -> list[Action]:
        for index, member in self._members.items():
            unwanted = index >= self.scale.target.num_shards
            if member.state is ShardState.JOINING and unwanted:
                member.state = ShardState.DEAD
            elif member.state is ShardState.SUSPECT:
                if member.suspected_at_s + SUSPECT_S <= now_s:
                    member.state, self._changed = ShardState.DEAD, True
            elif member.state is ShardState.DRAINING and not self._changed:
                self._let_go(member, now_s)
        due = [
            member
            for member in [*self._rivals, *self._members.values()]
            if member.state is ShardState.DEAD and member.kill_told_at_s + KILL_AGAIN_S <= now_s
        ]
        for member in due:
            member.kill_told_at_s = now_s
        return [Kill(member.key) for member in due]

    def _let_go(self, member: Member, now_s: float) -> None:
        """Take a drained shard out of the placement, and end it when ranks have heard of that."""
        if member.unlisted_at_s is None:
            if self.holdings.drained(member.key.index, now_s):
                member.unlisted_at_s, self._changed = now_s, True
        elif member.unlisted_at_s + UNLISTED_S <= now_s:
            member.state = ShardState.DEAD

    def _spawns(self, now_s: float) -> list[Action]:
        actions: list[Action] = []
        for index in range(self.scale.target.num_shards):
            respawn = self._respawns.get(index, Respawn())
            if index not in self._members and respawn.due_s <= now_s:
                self._last_incarnation += 1
                key = ShardKey(index, self._last_incarnation)
                self._members[index] = Member(key, ShardState.JOINING)
                actions.append(Spawn(key, self.holdings.spawned(index)))
        return actions

    def _orders(self, now_s: float) -> list[Action]:
        orders: list[Action] = []
        for member in self._serving():
            if member.state is ShardState.READY:
                holds_LE = self.holdings.order(member.key.index, now_s)
                if holds_LE is not None:
                    orders.append(Hold(member.key, holds_LE))
        return orders

    def _advance(self) -> None:
        target = self.scale.target
        serving = [member.key.index for member in self._serving()]
        starting = set(range(target.num_shards)) - set(serving)
        leaving = [index for index in self._members if index >= target.num_shards]
        missing = self.holdings.num_missing(serving)
        surplus = self.holdings.num_surplus(serving) + len(leaving)
        self._scaling.advance(len(starting), missing, surplus)

    def _next_placement(self, now_s: float) -> Placement:
        self._counter += 1
        serving = self._serving()
        seats = [member.key.index for member in serving]
        suspects = [each.key.index for each in serving if each.state is ShardState.SUSPECT]
        num_copies = max(self.scale.target.num_replicas, self.holdings.plan_LER.shape[2])
        copies_LEC = self.holdings.place(seats, suspects, num_copies, now_s)
        shards = []
        for member in serving:
            assert member.report is not None
            domain = "/".join(part for part in member.domain if part)
            shard = ShardId(member.key.index)
            shards.append(ShardInfo(shard, member.report.address, member.key.incarnation, domain))
        version = PlacementVersion(self.epoch, self._counter)
        return Placement(version, tuple(shards), copies_LEC, self.num_ranks)

    def _serving(self) -> list[Member]:
        return [
            member
            for _, member in sorted(self._members.items())
            if member.state in SERVING and member.unlisted_at_s is None
        ]

    @property
    def members(self) -> list[Member]:
        """Every shard that lives or starts, by seat."""
        return [member for _, member in sorted(self._members.items())]

    @property
    def keys(self) -> list[ShardKey]:
        """Every shard that may live, in order."""
        return sorted(member.key for member in [*self._rivals, *self._members.values()])

    @property
    def covered(self) -> bool:
        """Whether every expert has a shard that serves and is not suspected."""
        return self.num_uncovered == 0

    @property
    def num_uncovered(self) -> int:
        """How many (layer, expert) have no shard that serves and is not suspected."""
        sure = [
            member.key.index for member in self._serving() if member.state is not ShardState.SUSPECT
        ]
        return int(np.count_nonzero(~self.holdings.held(sure)))

    @property
    def settled(self) -> bool:
        """Whether all that is wanted serves, as planned, and nothing else lives."""
        serving = [member.key.index for member in self._serving()]
        alone = len(self._members) == len(serving) == self.scale.target.num_shards
        whole = self.holdings.num_missing(serving) == 0
        return alone and whole and self.holdings.num_surplus(serving) == 0

    def progress(self) -> str:
        """Return why the wanted shards do not serve yet: ``shard 3 of 8, 61 % of 1.9 GB``."""
        return progress_of(self.members, self.scale.target.num_shards)
