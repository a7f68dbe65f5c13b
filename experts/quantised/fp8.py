"""FP8 (E4M3): a weight is code × scale. N output width, D input width.

Values are looked up by code: torch's own conversion takes five times as long.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from experts.quantised.scheme import BLOCK


def fp8_values(codes_ND: Tensor, scale: Tensor) -> Tensor:
    """Return (N, D) in float32; `scale` is one number or one per row (N, 1)."""
    return _e4m3_values(codes_ND).mul_(scale.float())


def fp8_block_values(codes_ND: Tensor, scale_blocks: Tensor) -> Tensor:
    """Return (N, D) in float32; one scale per 128×128 block, the last ones may be cut short."""
    rows, columns = codes_ND.shape
    by_row = scale_blocks.float().repeat_interleave(BLOCK, dim=0)[:rows]
    return _e4m3_values(codes_ND).mul_(by_row.repeat_interleave(BLOCK, dim=1)[:, :columns])


def _e4m3_values(codes_ND: Tensor) -> Tensor:
    codes = codes_ND.reshape(-1).view(torch.uint8).int()
    return torch.index_select(_value_of(), 0, codes).view(codes_ND.shape)


@cache
def _value_of() -> Tensor:
    """Return the values of codes 0 to 255; two of them are no number."""
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
