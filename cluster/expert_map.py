"""Traffic and placement of every (layer, expert), small enough to be told every second. Pure.

L MoE layers, E experts, C copies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cluster.load_stats import LoadLE
from cluster.placement import Placement

NO_PLACEMENT = "none"
BUSIEST = 255
"""Level of the (layer, expert) with the most rows."""


@dataclass(frozen=True, slots=True)
class ExpertMap:
    """Who holds which expert, and where rows went lately.

    At 54 layers of 256 experts: 14 kB of levels, and 28 kB of placement for each copy.
    """

    placement: str
    """Version; `NO_PLACEMENT` before the first."""
    num_moe_layers: int
    num_experts: int
    num_copies: int
    max_rows: float
    """Decayed rows of the busiest (layer, expert)."""
    levels_LE: bytes
    """One byte each: BUSIEST x sqrt(rows / max_rows), so that an expert with few rows shows."""
    copies_LEC: bytes
    """Little-endian int16 each: the shard that holds the copy, primary first, -1 for none."""


def describe_experts(placement: Placement | None, rows_LE: LoadLE) -> ExpertMap:
    """Return placement and decayed rows (L, E) as they are told to people."""
    num_moe_layers, num_experts = rows_LE.shape
    max_rows = float(rows_LE.max(initial=0.0))
    shares_LE = rows_LE / max_rows if max_rows else rows_LE
    levels_LE = np.rint(BUSIEST * np.sqrt(shares_LE)).astype(np.uint8)
    copies_LEC = _shards_of(placement, rows_LE.shape)
    return ExpertMap(
        placement=NO_PLACEMENT if placement is None else str(placement.version),
        num_moe_layers=num_moe_layers,
        num_experts=num_experts,
        num_copies=copies_LEC.shape[2],
        max_rows=max_rows,
        levels_LE=levels_LE.tobytes(),
        copies_LEC=copies_LEC.tobytes(),
    )


def _shards_of(
    placement: Placement | None, shape: tuple[int, ...]
) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    """Return (L, E, C) shard ids; columns that no expert needs are left out."""
    if placement is None:
        return np.full((*shape, 1), -1, "<i2")
    copies_LEC = placement.copies_LEC
    num_copies = max(1, int((copies_LEC >= 0).any(axis=(0, 1)).sum()))
    shards = np.array([*(shard.shard_id for shard in placement.shards), -1], "<i2")
    return shards[copies_LEC[:, :, :num_copies]]
