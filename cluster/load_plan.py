"""One step towards a plan that fits the load that was seen. Pure.

L MoE layers, E experts, R copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.balance import BalanceConfig, rebalance
from cluster.load_stats import LoadLE
from cluster.planner import Int32, Seat
from cluster.spares import plan_spares


@dataclass(frozen=True, slots=True)
class LoadPlanner:
    """What a step may do: further copies out of a budget come before exchanges."""

    seats: Sequence[Seat]
    num_replicas: int
    """What every expert has."""
    max_spares: int
    """Further copies over the whole plan."""
    max_moves: int
    """Copies that one step may have shards read."""
    config: BalanceConfig | None = None

    def improve(self, plan_LER: Int32, load_LE: LoadLE) -> tuple[Int32, int]:
        """Return (L, E, R) the plan after one step, and how many copies move by it."""
        num_new = 0
        if self.max_spares or plan_LER.shape[2] > self.num_replicas:
            limits = (self.max_spares, self.max_moves)
            plan_LER, num_new = plan_spares(
                plan_LER, self.num_replicas, load_LE, self.seats, limits
            )
        left = self.max_moves - num_new
        plan_LER, num_moves = rebalance(plan_LER, load_LE, self.seats, left, self.config)
        return plan_LER, num_new + num_moves
