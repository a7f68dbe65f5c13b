"""What the pool does by itself, as configured."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.balancer import BalancePolicy
from cluster.rank_scaling import RankPolicy


@dataclass(frozen=True, slots=True)
class PoolPolicies:
    """When load moves experts, when it adds and ends attention ranks, and what is held ready."""

    balance: BalancePolicy
    ranks: RankPolicy
    warm_spare: bool
    """Keep one process with its imports done."""
