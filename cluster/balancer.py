"""When the pool plans for the load that ranks report: how often, how much, and on what evidence.

Pure; time is passed in. The moves themselves are `Membership`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.balance import BalanceConfig, ByteBudget
from cluster.load_stats import LoadLE, LoadStats
from cluster.membership import Membership

MIN_ROWS_PER_SEAT = 400.0
"""Of one layer, decayed: with fewer a seat's share is off by more than 5 % by chance alone."""
BURST_S = 60.0
"""So much of the rate may be saved up for one plan."""


@dataclass(frozen=True, slots=True)
class BalancePolicy:
    """`period_s` between plans; `margin`: see `BalanceConfig`; `bytes_per_s` 0: never move."""

    period_s: float = 10.0
    margin: float = 1.15
    bytes_per_s: float = 64.0 * 2**20


class Balancer:
    """Load statistics of all ranks and the budget that moves are paid from. Used by one thread."""

    def __init__(self, shape: tuple[int, int], policy: BalancePolicy) -> None:
        self._policy = policy
        self._config = BalanceConfig(margin=policy.margin)
        self._stats = LoadStats(*shape, half_life_s=6.0 * policy.period_s)
        self._budget = ByteBudget(policy.bytes_per_s, BURST_S * policy.bytes_per_s)
        self._due_s = 0.0

    def reported(self, rows_LE: LoadLE, now_s: float) -> None:
        """Take what a rank has counted since it told last."""
        self._stats.age(now_s)
        self._stats.add(rows_LE)

    def rows_LE(self, now_s: float) -> LoadLE:
        """Return (L, E): decayed rows of all ranks."""
        self._stats.age(now_s)
        return self._stats.rows_LE

    def turn(self, membership: Membership, now_s: float) -> int:
        """Plan when it is time and there is evidence; return how many copies move."""
        if now_s < self._due_s:
            return 0
        self._due_s = now_s + self._policy.period_s
        self._stats.age(now_s)
        rows_LE, num_seats = self._stats.rows_LE, membership.scale.target.num_shards
        expert_bytes = membership.expert_bytes
        if expert_bytes <= 0 or rows_LE.sum() < MIN_ROWS_PER_SEAT * num_seats * len(rows_LE):
            return 0
        max_moves = int(self._budget.available(now_s) / expert_bytes)
        num_moves = membership.rebalance(rows_LE, max_moves, self._config)
        self._budget.spend(num_moves * expert_bytes)
        return num_moves
