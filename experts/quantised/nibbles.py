"""Two 4-bit codes to a byte, the low one first.

Values are looked up, a byte at a time: torch's own shifts, masks and conversions take ten times as
long. N output width, D input width.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def nibble_values(packed: Tensor, value_of: tuple[float, ...]) -> Tensor:
    """Return the (N, D) float32 values of (N, D/2) uint8; `value_of` has those of codes 0 to 15."""
    rows, half = packed.shape
    pairs = torch.index_select(_pair_of(value_of), 0, packed.reshape(-1).int())
    return torch.view_as_real(pairs).view(rows, 2 * half)


@cache
def _pair_of(value_of: tuple[float, ...]) -> Tensor:
    """Return what each byte holds, as one complex number: low nibble, high nibble."""
    values, bytes_ = torch.tensor(value_of), torch.arange(256)
    return torch.complex(values[bytes_ & 0xF], values[bytes_ >> 4])
