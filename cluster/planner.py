"""Which seat shall hold which expert: equal slices, copies apart, as few moves as possible.

A seat is a place for a shard that outlives the shard's lives. Pure: what is known of seats and the
present plan go in, the wanted plan comes out; the same input gives the same plan.

L MoE layers, E experts, R copies of each, primary first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cluster.errors import ConfigError
from cluster.types import ShardSlice

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Seat:
    """A place for a shard. `domain` is what can fail around it, coarsest first: label, node.

    The process itself is always a domain; an empty `domain` means that nothing is known yet.
    """

    index: int
    domain: tuple[str, ...] = ()

    def shares(self, other: Seat) -> int:
        """Return how bad it is to hold copies of one expert at both: 0 when nothing is shared."""
        depth = len(self.domain)
        for level, (mine, others) in enumerate(zip(self.domain, other.domain, strict=False)):
            if mine and mine == others:
                return depth - level
        return 0


def check_scale(num_shards: int, num_replicas: int, num_experts: int | None = None) -> None:
    """Raise `ConfigError` with the reason when so many shards cannot hold so many copies."""
    if num_shards < 1:
        raise ConfigError("scale", "num_shards", f"is {num_shards}", "1 or more")
    if num_replicas < 1:
        raise ConfigError("scale", "num_replicas", f"is {num_replicas}", "1 (no spare) or more")
    if num_replicas > num_shards:
        problem = f"is {num_replicas}, above num_shards {num_shards}"
        reason = f"1 to {num_shards}: two copies of an expert in one process would die together"
        raise ConfigError("scale", "num_replicas", problem, reason)
    if num_experts is not None and num_shards > num_experts * num_replicas:
        problem = f"is {num_shards}"
        allowed = f"1 to {num_experts * num_replicas}: more would hold no expert"
        raise ConfigError("scale", "num_shards", problem, allowed)


def plan_copies(
    seats: Sequence[Seat],
    num_replicas: int,
    shape: tuple[int, int],
    current_LEC: Int32 | None = None,
) -> Int32:
    """Return (L, E, R) seat indexes, primary first.

    Each layer's copies are spread evenly (seats differ by one at most), primaries too; no two
    copies are at one seat, and as few as possible share a node or label.

    Args:
        seats: where experts may be.
        num_replicas: R.
        shape: (L, E).
        current_LEC: seat indexes held now, primary first, -1 for none; seats that are not among
            `seats` count as gone. None plans afresh.

    Raises:
        ConfigError: when so many seats cannot hold so many copies.
    """
    num_moe_layers, num_experts = shape
    check_scale(len(seats), num_replicas, num_experts)
    position_of = {seat.index: position for position, seat in enumerate(seats)}
    if current_LEC is None:
        fresh = _contiguous(len(seats), num_experts)
        layer_ER = _LayerPlan(seats, num_replicas, fresh).solve()
        return np.broadcast_to(layer_ER, (num_moe_layers, *layer_ER.shape)).copy()
    solved: dict[bytes, Int32] = {}  # layers are mostly alike
    plan_LER = np.empty((num_moe_layers, num_experts, num_replicas), np.int32)
    for layer, current_EC in enumerate(current_LEC):
        key = current_EC.tobytes()
        if key not in solved:
            held = [
                [position_of[seat] for seat in copies if seat in position_of]
                for copies in current_EC.tolist()
            ]
            solved[key] = _LayerPlan(seats, num_replicas, held).solve()
        plan_LER[layer] = solved[key]
    return plan_LER


def _contiguous(num_seats: int, num_experts: int) -> list[list[int]]:
    """Neighbouring experts lie together in files: primaries begin as slices."""
    held: list[list[int]] = [[] for _ in range(num_experts)]
    for position in range(min(num_seats, num_experts)):
        for expert in ShardSlice(position, min(num_seats, num_experts)).experts(num_experts):
            held[expert] = [position]
    return held


@dataclass
class _LayerPlan:
    """One layer. `held` has seat positions by expert, primary first."""

    seats: Sequence[Seat]
    num_replicas: int
    held: list[list[int]]
    copies: list[list[int]] = field(init=False)
    load: list[int] = field(init=False)
    capacity: list[int] = field(init=False)
    together: list[list[int]] = field(init=False)
    """How many experts two seats have in common: a lost seat's rows should go to many."""

    def __post_init__(self) -> None:
        num_seats = len(self.seats)
        self.copies = [[] for _ in self.held]
        self.load = [0] * num_seats
        self.together = [[0] * num_seats for _ in range(num_seats)]
        counts = [0] * num_seats
        for copies in self.held:
            for seat in copies:
                counts[seat] += 1
        base, extra = divmod(len(self.held) * self.num_replicas, num_seats)
        self.capacity = [base] * num_seats
        for _ in range(extra):
            self.capacity[self._next_larger(base, counts)] += 1

    def _next_larger(self, base: int, counts: list[int]) -> int:
        """Choose who holds one more than the others: nodes even first, then who holds most."""
        in_domain: dict[str, int] = {}
        if self.num_replicas > 1:
            for seat, capacity in zip(self.seats, self.capacity, strict=True):
                for name in seat.domain[:1]:
                    in_domain[name] = in_domain.get(name, 0) + capacity

        def order(position: int) -> tuple[int, int, int]:
            domain = self.seats[position].domain[:1]
            return (sum(in_domain.get(name, 0) for name in domain), -counts[position], position)

        open_seats = [at for at, capacity in enumerate(self.capacity) if capacity == base]
        return min(open_seats, key=order)

    def solve(self) -> Int32:
        """Return (E, R) seat indexes, primary first."""
        self._keep()
        for expert in range(len(self.held)):
            while len(self.copies[expert]) < self.num_replicas:
                self._fill(expert)
        if self.num_replicas > 1:
            self._part_domains()
            self._settle_primaries()
        indexes = np.array([seat.index for seat in self.seats], np.int32)
        return indexes[np.array(self.copies, np.int32)]

    def _keep(self) -> None:
        for rank in range(max(map(len, self.held), default=0)):
            for expert, held in enumerate(self.held):
                if rank < len(held) and len(self.copies[expert]) < self.num_replicas:
                    seat = held[rank]
                    if self.load[seat] < self.capacity[seat] and seat not in self.copies[expert]:
                        self._put(expert, seat)

    def _put(self, expert: int, seat: int) -> None:
        for other in self.copies[expert]:
            self.together[other][seat] += 1
            self.together[seat][other] += 1
        self.copies[expert].append(seat)
        self.load[seat] += 1

    def _take(self, expert: int, seat: int) -> None:
        self.copies[expert].remove(seat)
        self.load[seat] -= 1
        for other in self.copies[expert]:
            self.together[other][seat] -= 1
            self.together[seat][other] -= 1

    def _shared(self, expert: int, seat: int, without: int = -1) -> int:
        """Return what `seat` shares with the other copies of `expert`."""
        others = [each for each in self.copies[expert] if each not in (seat, without)]
        return sum(self.seats[seat].shares(self.seats[other]) for other in others)

    def _fill(self, expert: int) -> None:
        copies = self.copies[expert]
        free = [seat for seat in range(len(self.seats)) if self.load[seat] < self.capacity[seat]]
        open_seats = [seat for seat in free if seat not in copies]
        if not open_seats:
            self._make_room(expert, free[0])
            return

        def badness(seat: int) -> tuple[int, int, int, int]:
            in_common = sum(self.together[seat][other] for other in copies)
            room = self.capacity[seat] - self.load[seat]
            return (self._shared(expert, seat), -room, in_common, seat)

        self._put(expert, min(open_seats, key=badness))

    def _make_room(self, expert: int, free_seat: int) -> None:
        """Only a seat that holds the expert has room: another one passes something on to it.

        There is always such another one, since capacities differ by one at most.
        """
        for seat in range(len(self.seats)):
            if seat in self.copies[expert]:
                continue
            for other, copies in enumerate(self.copies):
                if seat in copies and free_seat not in copies:
                    self._take(other, seat)
                    self._put(other, free_seat)
                    self._put(expert, seat)
                    return
        raise AssertionError("no seat could make room")

    def _part_domains(self) -> None:
        """Exchange copies that share a node or label with ones that do not, while that helps."""
        for expert in range(len(self.held)):
            for seat in list(self.copies[expert]):
                if self._shared(expert, seat):
                    self._exchange(expert, seat)

    def _exchange(self, expert: int, seat: int) -> None:
        before = self._shared(expert, seat)
        for target in range(len(self.seats)):
            if target in self.copies[expert]:
                continue
            gain = before - self._shared(expert, target, without=seat)
            if gain <= 0:
                continue
            if self.load[target] < self.capacity[target]:
                self._take(expert, seat)
                self._put(expert, target)
                return
            for other, copies in enumerate(self.copies):
                if target not in copies or seat in copies:
                    continue
                loss = self._shared(other, seat, target) - self._shared(other, target)
                if loss < gain:
                    self._take(expert, seat)
                    self._take(other, target)
                    self._put(expert, target)
                    self._put(other, seat)
                    return

    def _settle_primaries(self) -> None:
        """Put a copy first in each row so that primaries are spread evenly; keep the old ones."""
        count = [0] * len(self.seats)
        for expert, copies in enumerate(self.copies):
            kept = [seat for seat in self.held[expert][:1] if seat in copies]
            first = kept[0] if kept else min(copies, key=lambda seat: (count[seat], seat))
            self._set_primary(expert, first)
            count[first] += 1
        for seat in sorted(range(len(self.seats)), key=lambda seat: -count[seat]):
            while self._pass_on(seat, count):
                pass

    def _set_primary(self, expert: int, seat: int) -> None:
        self.copies[expert].remove(seat)
        self.copies[expert].insert(0, seat)

    def _pass_on(self, seat: int, count: list[int]) -> bool:
        """Move one primary from `seat` along a chain of copies to one that has two fewer."""
        came_from: dict[int, tuple[int, int]] = {}
        queue = deque([seat])
        while queue:
            at = queue.popleft()
            if count[at] <= count[seat] - 2:
                count[at] += 1
                count[seat] -= 1
                while at != seat:
                    previous, expert = came_from[at]
                    self._set_primary(expert, at)
                    at = previous
                return True
            for expert, copies in enumerate(self.copies):
                if copies[0] == at:
                    for other in copies[1:]:
                        if other != seat and other not in came_from:
                            came_from[other] = (at, expert)
                            queue.append(other)
        return False
