"""NVFP4: E2M1 codes with an E4M3 scale per row and 16 columns, and one scale over all.

The effective scale of 16 columns is worked out in float32 first, as compressed-tensors does it, and
then multiplies the code's value. N output width, D input width.
"""

from __future__ import annotations

from torch import Tensor

from experts.quantised.nibbles import nibble_values

GROUP_SIZE = 16

_SIZES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_VALUES = (*_SIZES, *(-size for size in _SIZES))
"""Of codes 0 to 15."""


def nvfp4_values(packed: Tensor, effective_scale: Tensor) -> Tensor:
    """Return (N, D) in float32.

    Args:
        packed: (N, D/2) uint8; the low nibble is the even column.
        effective_scale: (N, D/16) float32.
    """
    values = nibble_values(packed, E2M1_VALUES)
    values.view(len(packed), -1, GROUP_SIZE).mul_(effective_scale.unsqueeze(-1))
    return values
