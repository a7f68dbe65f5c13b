"""W4A16: a weight is (nibble - 8) × scale of its row and group. N output width, D input width."""

from __future__ import annotations

import torch
from torch import Tensor

from experts.quantised.nibbles import nibble_values

INT4_VALUES = tuple(float(nibble - 8) for nibble in range(16))


def int4_values(packed: Tensor, scale: Tensor, group_size: int) -> Tensor:
    """Return (N, D) in float32.

    Args:
        packed: (N, D/8) int32; column 8w+i is nibble i of word w, counted from the lowest. In
            memory that is two columns to a byte: files and the machines they are read on are
            little-endian.
        scale: (N, D/group_size).
        group_size: columns that share a scale.
    """
    values = nibble_values(packed.view(torch.uint8), INT4_VALUES)
    values.view(len(packed), -1, group_size).mul_(scale.float().unsqueeze(-1))
    return values
