"""How many attention ranks the load asks for: by tokens that wait and KV in use, not by requests.

A request may be ten tokens or a hundred thousand; what makes others wait is prompt tokens that no
step has taken yet, and KV that is full. Pure; time is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from cluster.pool_messages import RankLoad

IDLE_SHARE = 0.5
"""Ranks become fewer while those that stay would be below this share of each limit."""


@dataclass(frozen=True, slots=True)
class RankPolicy:
    """`max_ranks` at or below `min_ranks`: the number stays. A load has to last for the delays."""

    min_ranks: int = 1
    max_ranks: int = 0
    waiting_tokens: int = 4096
    """Of one rank, above which there are too few."""
    kv_usage: float = 0.9
    """Mean over ranks, above which there are too few."""
    up_after_s: float = 5.0
    down_after_s: float = 60.0


class RankScaling:
    """Remembers since when there have been too few or too many ranks. Used by one thread."""

    def __init__(self, policy: RankPolicy) -> None:
        self._policy = policy
        self._since_s: float | None = None
        self._direction = 0

    def wanted(self, loads: Iterable[RankLoad], now_s: float) -> int | None:
        """Return how many ranks there should be, or None when it is well as it is."""
        loads = list(loads)
        if self._policy.max_ranks <= self._policy.min_ranks or not loads:
            return None
        target = self._bounded(self._needed(loads))
        direction = (target > len(loads)) - (target < len(loads))
        if direction != self._direction:
            self._direction, self._since_s = direction, now_s
        after_s = self._policy.up_after_s if direction > 0 else self._policy.down_after_s
        if direction == 0 or self._since_s is None or now_s - self._since_s < after_s:
            return None
        self._since_s = now_s  # what comes of it has to show first
        return target

    def _needed(self, loads: list[RankLoad]) -> int:
        policy, num_ranks = self._policy, len(loads)
        waiting = sum(load.waiting_tokens for load in loads) / policy.waiting_tokens
        kv = sum(load.kv_usage for load in loads) / policy.kv_usage
        if max(waiting, kv) > num_ranks:
            # Twice as many at most: each new one takes load away from the others.
            return min(math.ceil(max(waiting, kv)), 2 * num_ranks)
        # One fewer at a time: its streams are replayed by the others.
        fits = max(waiting, kv) <= IDLE_SHARE * (num_ranks - 1)
        return num_ranks - 1 if fits else num_ranks

    def _bounded(self, num_ranks: int) -> int:
        return max(self._policy.min_ranks, min(num_ranks, self._policy.max_ranks))
