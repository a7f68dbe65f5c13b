"""Which shard holds which expert: immutable, versioned, published by one owner."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cluster.types import PlacementVersion, ShardId, ShardSlice

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True)
class ShardInfo:
    """One shard as placement sees it. `address` is the transport's own URL form."""

    shard_id: ShardId
    address: str
    incarnation: int
    failure_domain: str = ""


@dataclass(frozen=True)
class Placement:
    """(MoE layer, expert) -> copies.

    Layers are counted over MoE layers only (0 is the first layer with experts).
    `copies_LEC` holds positions in `shards`, primary first, padded with -1.
    """

    version: PlacementVersion
    shards: tuple[ShardInfo, ...]
    copies_LEC: IntArray
    num_ranks: int = 1
    """How many attention ranks there are: above one, shards wait for each other's rows."""

    def __post_init__(self) -> None:
        self.copies_LEC.setflags(write=False)

    @classmethod
    def sliced(
        cls,
        version: PlacementVersion,
        shards: tuple[ShardInfo, ...],
        num_moe_layers: int,
        num_experts: int,
    ) -> Placement:
        """Give shard i of S the i-th contiguous slice of every layer (no replicas)."""
        owner_E = np.empty(num_experts, dtype=np.int32)
        for index in range(len(shards)):
            owner_E[list(ShardSlice(index, len(shards)).experts(num_experts))] = index
        copies_LEC = np.broadcast_to(owner_E[None, :, None], (num_moe_layers, num_experts, 1))
        return cls(version, shards, copies_LEC.copy())

    @cached_property
    def primary_LE(self) -> IntArray:
        """(L, E) position in `shards` of each expert's primary copy, -1 when uncovered."""
        return np.ascontiguousarray(self.copies_LEC[:, :, 0])

    @property
    def covered(self) -> bool:
        """Whether every (layer, expert) has a copy."""
        return bool((self.copies_LEC[:, :, 0] >= 0).all())

    def experts_of(self, shard_idx: int, moe_layer: int) -> list[int]:
        """Return the expert ids of which shard `shard_idx` holds a copy in `moe_layer`."""
        holds_E = (self.copies_LEC[moe_layer] == shard_idx).any(axis=1)
        return [int(expert) for expert in np.flatnonzero(holds_E)]
