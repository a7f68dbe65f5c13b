"""Tile sizes. Pure: it knows no Triton.

M is the weights' output rows, N the token rows, K what is summed over. K's step is one per dtype,
whatever the number of rows, and every program goes through all of K in order, with float32 sums:
an output element is the same chain of the same K steps in every tile size. What differs with the
N tile is how many columns one matrix instruction has beside each other (``m64nNk16`` on sm_90; its
k is 16 always, which `tests.gpu.check` reads from the compiled code). That columns do not meddle
with each other, so that the bits are equal, is the machine's property: claimed where a GPU ran it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program computes at a time, and with how many warps and loads ahead."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


BLOCK_K = {torch.bfloat16: 64, torch.float32: 32}

# 64 rows of M are the least that sm_90's widest instruction takes, and leave most programs to
# spread over the machine when there are few token rows. 128 by 128 re-uses each byte often enough
# to be bound by arithmetic.
_BFLOAT16 = (
    Tile(64, 16, num_warps=4, num_stages=4),
    Tile(64, 32, num_warps=4, num_stages=4),
    Tile(64, 64, num_warps=4, num_stages=4),
    Tile(128, 128, num_warps=8, num_stages=3),
)
# Float32 has no matrix instruction that keeps its bits: fused multiply-adds, operands in registers.
_FLOAT32 = (
    Tile(64, 16, num_warps=4, num_stages=2),
    Tile(64, 64, num_warps=8, num_stages=2),
)
TILES: dict[torch.dtype, tuple[Tile, ...]] = {torch.bfloat16: _BFLOAT16, torch.float32: _FLOAT32}


def tile_for(max_rows: int, dtype: torch.dtype) -> Tile:
    """Return the smallest tile that takes the rows of the largest group at once, or the largest."""
    tiles = TILES[dtype]
    return next((tile for tile in tiles if tile.block_n >= max_rows), tiles[-1])


def num_tiles(rows_G: Sequence[int], block_n: int) -> int:
    """Return how many N tiles groups of so many rows take."""
    return sum(-(-rows // block_n) for rows in rows_G)


def most_tiles(num_rows: int, num_groups: int, block_n: int) -> int:
    """Return how many N tiles `num_rows` take at most, whatever groups they are in."""
    used = min(num_rows, num_groups)
    return (num_rows + used * (block_n - 1)) // block_n


def padded_groups(num_groups: int) -> int:
    """Return the size of the vector in which a program looks for its group: few sizes in all."""
    size = 32
    while size < num_groups:
        size *= 2
    return size
