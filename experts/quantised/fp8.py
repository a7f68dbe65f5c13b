"""FP8 (E4M3): a weight is code × scale. N output width, D input width."""

from __future__ import annotations

from torch import Tensor

from experts.quantised.scheme import BLOCK


def fp8_values(codes_ND: Tensor, scale: Tensor) -> Tensor:
    """Return (N, D) in float32; `scale` is one number or one per row (N, 1)."""
    return codes_ND.float() * scale.float()


def fp8_block_values(codes_ND: Tensor, scale_blocks: Tensor) -> Tensor:
    """Return (N, D) in float32; one scale per 128×128 block, the last ones may be cut short."""
    rows, columns = codes_ND.shape
    by_row = scale_blocks.float().repeat_interleave(BLOCK, dim=0)[:rows]
    return codes_ND.float() * by_row.repeat_interleave(BLOCK, dim=1)[:, :columns]
