"""NVFP4: E2M1 codes with an E4M3 scale per row and 16 columns, and one scale over all.

The effective scale of 16 columns is worked out in float32 first, as compressed-tensors does it, and
then multiplies the code's value. N output width, D input width.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

GROUP_SIZE = 16

E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Of codes 0 to 7; codes 8 to 15 are their negatives."""


def nvfp4_values(packed: Tensor, effective_scale: Tensor) -> Tensor:
    """Return (N, D) in float32.

    Args:
        packed: (N, D/2) uint8; the low nibble is the even column.
        effective_scale: (N, D/16) float32.
    """
    rows = packed.shape[0]
    values = _pair_table()[packed.int()].view(rows, -1, GROUP_SIZE)
    return (values * effective_scale.unsqueeze(-1)).view(rows, -1)


@cache
def _pair_table() -> Tensor:
    """Return (256, 2): the two values that a byte holds."""
    value_of = torch.tensor([*E2M1_VALUES, *(-value for value in E2M1_VALUES)])
    bytes_ = torch.arange(256)
    return torch.stack((value_of[bytes_ & 0xF], value_of[bytes_ >> 4]), dim=-1)
