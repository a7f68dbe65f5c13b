"""W4A16: a weight is (nibble - 8) × scale of its row and group. N output width, D input width."""

from __future__ import annotations

import torch
from torch import Tensor

_PER_WORD = 8
_ZERO = 8


def int4_values(packed: Tensor, scale: Tensor, group_size: int) -> Tensor:
    """Return (N, D) in float32.

    Args:
        packed: (N, D/8) int32; column 8w+i is nibble i of word w, counted from the lowest.
        scale: (N, D/group_size).
        group_size: columns that share a scale.
    """
    rows = packed.shape[0]
    shifts = torch.arange(0, 4 * _PER_WORD, 4, dtype=torch.int32)
    levels = ((packed.unsqueeze(-1) >> shifts) & 0xF) - _ZERO
    grouped = levels.view(rows, -1, group_size).float() * scale.float().unsqueeze(-1)
    return grouped.view(rows, -1)
