"""Which seats are to hold experts, and for which of them the plan in force was made. Pure."""

from __future__ import annotations

from cluster.errors import ConfigError
from cluster.holdings import Holdings
from cluster.planner import Seat
from cluster.pool_messages import Target
from cluster.roster import Roster


class SeatPlan:
    """Seats of the wanted scale, but for those that are emptied by hand. One owner."""

    def __init__(self, target: Target, roster: Roster) -> None:
        self._roster = roster
        self._emptied: set[int] = set()
        """Seats whose shard is drained by hand, until it is gone."""
        self._planned_for: tuple[Target, tuple[Seat, ...]] = (target, tuple(self.seats(target)))

    def wanted(self, target: Target) -> list[int]:
        """Return the seats whose shard is to hold experts."""
        return [seat for seat in range(target.num_shards) if seat not in self._emptied]

    def seats(self, target: Target) -> list[Seat]:
        """Return the same with what can fail around each, as far as it is known."""
        members = ((seat, self._roster.at(seat)) for seat in self.wanted(target))
        return [Seat(seat, () if each is None else each.domain) for seat, each in members]

    def empty(self, seat: int, target: Target) -> None:
        """Let the others take over from a seat. Raises `ConfigError` when they are too few."""
        num_others = len({*self.wanted(target)} - {seat})
        if num_others < target.num_replicas:
            problem = f"{seat} cannot be emptied: {num_others} others are there"
            needed = f"as many others as copies, {target.num_replicas}, or more"
            raise ConfigError("drain", "shard", problem, needed)
        self._emptied.add(seat)

    def refill(self, seat: int) -> None:
        """The shard of a seat is gone: whoever takes it is to hold experts again."""
        self._emptied.discard(seat)

    def planned(self, target: Target) -> None:
        """Take note that the plan in force is for this target and the seats as they are."""
        self._planned_for = (target, tuple(self.seats(target)))

    def replan(self, target: Target, holdings: Holdings) -> bool:
        """Plan anew when the target or the seats have changed, or all domains are known and others.

        A drain that a change of scale meets is given up: there might be too few for both. Returns
        whether there is another plan.
        """
        planned_target, planned_seats = self._planned_for
        if target != planned_target:
            self._emptied.clear()
        seats = tuple(self.seats(target))
        others = [seat.index for seat in seats] != [seat.index for seat in planned_seats]
        learnt = seats != planned_seats and all(seat.domain for seat in seats)
        if target != planned_target or others or (learnt and holdings.could_be_parted(seats)):
            holdings.replan(seats, target.num_replicas)
            self._planned_for = (target, seats)
            return True
        return False
