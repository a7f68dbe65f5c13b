"""Who holds which expert, who shall, and which loads and frees lead from one to the other.

An expert is read by its new owner first, compared with the copies that were there before, placed,
and freed by the old owner only when no placement has named it there for `DRAIN_S`. A shard holds
one expert of one layer more than its larger plan at most. Pure; time is passed in.

S seats, L MoE layers, E experts, R copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import numpy.typing as npt

from cluster.planner import Int32, Seat, plan_copies
from cluster.pool_messages import HoldsLE, SumsLE

DRAIN_S = 5.0
"""How long an expert stays where no placement names it any more, for rows in flight."""
_NEVER = np.inf
_NO_COPY = 1000
_SUSPECT = 100
_NOT_PLANNED = 10


@dataclass
class _Held:
    """One seat's books, for the life of one shard."""

    holds_LE: HoldsLE
    ordered_LE: HoldsLE
    room: int
    """Experts it may hold at most."""
    unplaced_since_LE: npt.NDArray[np.float64]
    """Since when no placement names the expert here; `_NEVER` while one does."""
    sums_LE: SumsLE
    """As last reported."""


@dataclass
class Holdings:
    """The books of all seats."""

    num_moe_layers: int
    num_experts: int
    plan_LER: Int32
    """Seats of each expert's copies, primary first, then -1 where there are fewer."""
    _held: dict[int, _Held] = field(default_factory=dict)
    _reference_LE: SumsLE = field(init=False)

    def __post_init__(self) -> None:
        self._reference_LE = np.zeros((self.num_moe_layers, self.num_experts), np.uint32)

    def planned(self, seat: int) -> HoldsLE:
        """Return (L, E) what `seat` shall hold."""
        return np.asarray((self.plan_LER == seat).any(axis=2))

    def replan(self, seats: Sequence[Seat], num_replicas: int) -> None:
        """Plan for these seats with as few moves as possible from what is held or loaded now."""
        known = sorted({*self._held, *np.unique(self.plan_LER[self.plan_LER >= 0]).tolist()})
        holds = [
            self._held[seat].holds_LE | self._held[seat].ordered_LE
            if seat in self._held
            else self.planned(seat)
            for seat in known
        ]
        positions_LEC = self._best_first(known, holds)
        current_LEC = np.append(np.array(known, np.int32), np.int32(-1))[positions_LEC]
        shape = (self.num_moe_layers, self.num_experts)
        self.follow(plan_copies(seats, num_replicas, shape, current_LEC.astype(np.int32)))

    def follow(self, plan_LER: Int32) -> None:
        """Take another plan."""
        self.plan_LER = plan_LER
        for seat, held in self._held.items():
            planned = int(self.planned(seat).sum())
            held.room = max(int(held.ordered_LE.sum()), planned) + 1

    def could_be_parted(self, seats: Sequence[Seat]) -> bool:
        """Whether copies share a node or label although there are several."""
        if len({seat.domain for seat in seats}) == 1:
            return False
        by_index = {seat.index: seat for seat in seats}
        groups = np.unique(self.plan_LER.reshape(-1, self.plan_LER.shape[2]), axis=0).tolist()
        return any(
            by_index[one].shares(by_index[other])
            for copies in groups
            for one, other in combinations([copy for copy in copies if copy >= 0], 2)
        )

    def adopt(self, seats: Sequence[Seat], num_replicas: int) -> None:
        """Plan for shards that were found.

        Those that still load do so by the plan of a first start, unless what others hold says that
        it was left since.
        """
        shape = (self.num_moe_layers, self.num_experts)
        self.plan_LER = plan_copies([Seat(seat.index) for seat in seats], num_replicas, shape)
        if not all((held.holds_LE == self.planned(s)).all() for s, held in self._held.items()):
            self.plan_LER = np.empty((*shape, 0), np.int32)
            self.replan(seats, num_replicas)

    def spawned(self, seat: int) -> HoldsLE:
        """Open the books of a new shard; return what it has to load first."""
        wanted_LE = self.planned(seat)
        self._open(seat, np.zeros_like(wanted_LE), wanted_LE)
        return wanted_LE

    def joined(self, seat: int, sums_LE: SumsLE) -> str:
        """Note what a shard that has loaded holds, one of an earlier pool's too; see `reported`."""
        if seat not in self._held:
            self._open(seat, sums_LE != 0, sums_LE != 0)
        return self.reported(seat, sums_LE)

    def _open(self, seat: int, holds_LE: HoldsLE, ordered_LE: HoldsLE) -> None:
        since_LE = np.full(holds_LE.shape, _NEVER)
        room = max(int(ordered_LE.sum()), int(self.planned(seat).sum())) + 1
        self._held[seat] = _Held(
            holds_LE, ordered_LE.copy(), room, since_LE, np.zeros(holds_LE.shape, np.uint32)
        )

    def gone(self, seat: int) -> None:
        """Close the books of a shard that is dead."""
        self._held.pop(seat, None)

    def reported(self, seat: int, sums_LE: SumsLE) -> str:
        """Note what a shard holds; return what is wrong with it, or an empty text.

        An expert whose bytes differ from those of the copies seen before is not counted.
        """
        held = self._held[seat]
        held.sums_LE = sums_LE
        reference_LE = self._reference_LE
        there_LE = sums_LE != 0
        first_LE = there_LE & (reference_LE == 0)
        reference_LE[first_LE] = sums_LE[first_LE]
        held.holds_LE = there_LE & (sums_LE == reference_LE)
        wrong = np.argwhere(there_LE & ~held.holds_LE)
        if not len(wrong):
            return ""
        layer, expert = wrong[0]
        return (
            f"{len(wrong)} experts read by shard {seat} differ from the copies that serve, the "
            f"first is expert {expert} of MoE layer {layer}: its checkpoint is another one"
        )

    def differs(self, seat: int, sums_LE: SumsLE) -> bool:
        """Whether a shard now says something else about what it holds."""
        return not np.array_equal(self._held[seat].sums_LE, sums_LE)

    def held(self, seats: Iterable[int]) -> HoldsLE:
        """Return (L, E) what any of these seats holds."""
        any_LE = np.zeros((self.num_moe_layers, self.num_experts), np.bool_)
        for seat in seats:
            any_LE |= self._held[seat].holds_LE & self._held[seat].ordered_LE
        return any_LE

    def place(
        self, seats: Sequence[int], suspects: Iterable[int], num_replicas: int, now_s: float
    ) -> Int32:
        """Return (L, E, R) positions in `seats` of each expert's copies, -1 for none.

        Planned copies come first, then copies that are on their way out, suspects' last.
        """
        holds = [self._held[seat].holds_LE & self._held[seat].ordered_LE for seat in seats]
        best_LEC = self._best_first(seats, holds, frozenset(suspects))[:, :, :num_replicas]
        copies_LER = np.full((self.num_moe_layers, self.num_experts, num_replicas), -1, np.int32)
        copies_LER[:, :, : best_LEC.shape[2]] = best_LEC
        self._note_placed(seats, copies_LER, now_s)
        return copies_LER

    def _best_first(
        self,
        seats: Sequence[int],
        holds: Sequence[HoldsLE],
        suspects: frozenset[int] = frozenset(),
    ) -> Int32:
        """Return (L, E, S) positions in `seats` of all copies, then -1: planned ones first."""
        shape = (self.num_moe_layers, self.num_experts)
        badness_SLE = np.full((len(seats), *shape), _NO_COPY)
        for position, (seat, holds_LE) in enumerate(zip(seats, holds, strict=True)):
            ranks_LE = np.full(shape, _NOT_PLANNED)
            for rank in reversed(range(self.plan_LER.shape[2])):
                ranks_LE[self.plan_LER[:, :, rank] == seat] = rank
            badness_SLE[position][holds_LE] = ranks_LE[holds_LE] + _SUSPECT * (seat in suspects)
        order_SLE = np.argsort(badness_SLE, axis=0, kind="stable")
        best_SLE = np.take_along_axis(badness_SLE, order_SLE, axis=0)
        order_SLE[best_SLE == _NO_COPY] = -1
        return np.moveaxis(order_SLE, 0, 2).astype(np.int32)

    def _note_placed(self, seats: Sequence[int], copies_LEC: Int32, now_s: float) -> None:
        position_of = {seat: position for position, seat in enumerate(seats)}
        for seat, held in self._held.items():
            since_LE = held.unplaced_since_LE
            named_LE = (copies_LEC == position_of.get(seat, -2)).any(axis=2)
            since_LE[named_LE] = _NEVER
            since_LE[~named_LE & (since_LE == _NEVER)] = now_s

    def drained(self, seat: int, now_s: float) -> bool:
        """Whether no placement has named `seat` for `DRAIN_S`."""
        return bool((self._held[seat].unplaced_since_LE + DRAIN_S <= now_s).all())

    def order(self, seat: int, now_s: float) -> HoldsLE | None:
        """Return what `seat` is to hold from now on, or None when it has been told.

        Loads what its plan lacks as far as there is room; frees what others serve now.
        """
        held, planned_LE = self._held[seat], self.planned(seat)
        old_LE = held.unplaced_since_LE + DRAIN_S <= now_s
        wanted_LE = held.ordered_LE & (planned_LE | ~old_LE)
        missing = np.flatnonzero(planned_LE & ~wanted_LE)
        room = held.room - int((wanted_LE | held.holds_LE).sum())
        wanted_LE.flat[missing[: max(room, 0)]] = True
        # What an earlier pool ordered may come while nobody wants it any more: say so again.
        stray_LE = held.holds_LE & ~held.ordered_LE
        if np.array_equal(wanted_LE, held.ordered_LE) and not stray_LE.any():
            return None
        held.ordered_LE = wanted_LE
        return wanted_LE.copy()

    def num_missing(self, seats: Iterable[int]) -> int:
        """Return how many planned copies these seats do not hold yet."""
        return sum(int((self.planned(s) & ~self._held[s].holds_LE).sum()) for s in seats)

    def num_surplus(self, seats: Iterable[int]) -> int:
        """Return how many copies these seats hold that are not planned there."""
        return sum(int((self._held[s].holds_LE & ~self.planned(s)).sum()) for s in seats)

    def sizes(self) -> Mapping[int, int]:
        """Return how many (layer, expert) each seat holds."""
        return {seat: int(held.holds_LE.sum()) for seat, held in self._held.items()}
