"""Which copy of each expert a rank asks: the first that lives, holds it, and is not slow.

L MoE layers, E experts, C copies, S shards.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass

import numpy as np

from cluster.placement import Placement, ShardInfo
from router.plan import Int32, Int64
from router.spill import LEAST_ROWS, spread

ShardKey = tuple[int, int]
"""(shard id, incarnation): a restarted shard is never taken for the old one."""


def key_of(shard: ShardInfo) -> ShardKey:
    """Return what names one life of one shard."""
    return (shard.shard_id, shard.incarnation)


@dataclass(frozen=True, slots=True)
class _Absent:
    """Experts that a shard said it does not hold, whatever the placement says."""

    key: ShardKey
    moe_layer: int
    expert_ids_G: Int32
    until_s: float


class Copies:
    """Choices under the newest placement, kept by layer until something changes.

    `alive` tells whether a life of a shard can be reached; its owner says `changed` when that
    changes. Owned by the engine thread.
    """

    def __init__(self, alive: Callable[[ShardKey], bool]) -> None:
        self._alive = alive
        self._placement: Placement | None = None
        self._first: dict[int, Int32] = {}
        self._absent: list[_Absent] = []
        self._slow: frozenset[ShardKey] = frozenset()

    def apply(self, placement: Placement) -> None:
        """Take a newer placement, which also ends what shards said not to hold."""
        self._placement = placement
        self._absent.clear()
        self._first.clear()

    def changed(self) -> None:
        """Choose anew: a shard came or went."""
        self._first.clear()

    def ask_last(self, slow: Set[ShardKey]) -> None:
        """From now on ask these shards only for experts without another living copy."""
        self._slow = frozenset(slow)
        self._first.clear()

    def absent(self, key: ShardKey, moe_layer: int, expert_ids_G: Int32, until_s: float) -> None:
        """Ask a shard for these experts no more, until then or until the next placement."""
        self._absent.append(_Absent(key, moe_layer, expert_ids_G, until_s))
        self._first.pop(moe_layer, None)

    def tend(self, now_s: float) -> None:
        """Ask again for what was absent for long enough."""
        if self._absent and now_s >= self._absent[0].until_s:
            self._absent = [each for each in self._absent if now_s < each.until_s]
            self._first.clear()

    def first(self, moe_layer: int) -> Int32:
        """Return (E,) the position of the copy to ask, -1 where none lives."""
        owner_E = self._first.get(moe_layer)
        if owner_E is None:
            owner_E = self._first[moe_layer] = self._ranked(moe_layer)[:, 0].copy()
        return owner_E

    def spread(self, moe_layer: int, topk_ids_TK: Int64) -> Int32:
        """Return (E,) as `first`, but spread over copies that are not slow, if the batch is large.

        See `router.spill`.
        """
        first_E = self.first(moe_layer)
        assert self._placement is not None
        num_experts, width = self._placement.copies_LEC.shape[1:]
        if width == 1 or topk_ids_TK.size < LEAST_ROWS:
            return first_E
        rows_E = np.bincount(topk_ids_TK.reshape(-1), minlength=num_experts)
        ranked_EC = self._ranked(moe_layer, self._slow)
        ranked_EC[:, 0] = first_E
        return spread(rows_E, ranked_EC, len(self._placement.shards))

    def second(self, moe_layer: int) -> Int32:
        """Return (E,) as `first`, but the second living copy where there are two."""
        ranked_EC = self._ranked(moe_layer)
        if ranked_EC.shape[1] == 1:
            return ranked_EC[:, 0]
        return np.where(ranked_EC[:, 1] >= 0, ranked_EC[:, 1], ranked_EC[:, 0])

    def elsewhere(self, moe_layer: int, key: ShardKey) -> Int32:
        """Return (E,) as `first`, but -1 where only this shard or slow ones have a copy."""
        return self._ranked(moe_layer, self._slow | {key})[:, 0]

    def _ranked(self, moe_layer: int, without: Set[ShardKey] = frozenset()) -> Int32:
        """(E, C): living copies in the order in which they are asked, then -1."""
        assert self._placement is not None
        keys = [key_of(shard) for shard in self._placement.shards]
        # The last entry, which position -1 reads, is never alive.
        alive_S = np.array([key not in without and self._alive(key) for key in keys] + [False])
        copies_EC = self._placement.copies_LEC[moe_layer]
        living_EC = alive_S[copies_EC]
        for absent in self._absent:
            if absent.moe_layer == moe_layer:
                position = keys.index(absent.key)
                living_EC[absent.expert_ids_G] &= copies_EC[absent.expert_ids_G] != position
        slow_S = np.array([key in self._slow for key in keys] + [False])
        # Stable: among equals the placement's order counts.
        order_EC = np.argsort(2 * ~living_EC + slow_S[copies_EC], axis=1, kind="stable")
        ranked_EC = np.where(living_EC, copies_EC, np.int32(-1))
        return np.take_along_axis(ranked_EC, order_EC, axis=1)
