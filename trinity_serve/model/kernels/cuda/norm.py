"""RMS norm of rows, and the sandwich between two sub-layers.

One program per row; a row's sum of squares is one reduction over a block as wide as the row, so its
order is fixed by the width.
"""

from __future__ import annotations

import triton.language as tl

from experts.kernels.cuda.numbers import jit, rounded, widened


@jit
def inverse_rms(square_sum: tl.tensor, width: tl.constexpr, eps: tl.tensor) -> tl.tensor:
    """Return 1 / sqrt(mean + eps) from a sum of squares, float32."""
    mean = tl.div_rn(square_sum, tl.full(square_sum.shape, width, tl.float32))
    root = tl.sqrt_rn(mean + eps)
    return tl.div_rn(tl.full(root.shape, 1.0, tl.float32), root)


@jit
def _normed(x: tl.tensor, weight: tl.tensor, WIDTH: tl.constexpr, eps: tl.tensor) -> tl.tensor:
    """Norm of one row in float32; what pads it to the block is zero."""
    return weight * (x * inverse_rms(tl.sum(x * x, axis=0, keep_dims=True), WIDTH, eps))


@jit
def rms_norm_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """out[row] = norm(x[row]) * weight; program = row."""
    i = tl.arange(0, BLOCK)
    used = i < WIDTH
    at = tl.program_id(0).to(tl.int64) * WIDTH + i
    x_row = widened(tl.load(x + at, mask=used, other=0.0))
    weight_row = widened(tl.load(weight + i, mask=used, other=0.0))
    normed = _normed(x_row, weight_row, WIDTH, eps)
    tl.store(out + at, rounded(normed, out.dtype.element_ty), mask=used)


@jit
def residual_norm_kernel(
    residual: tl.tensor,
    branch: tl.tensor,
    post_weight: tl.tensor,
    next_weight: tl.tensor,
    sums: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """sums[row] = residual + norm(branch, post); out[row] = norm(sums, next); program = row.

    Each of the three steps is rounded to the rows' type, as eager torch does.
    """
    i = tl.arange(0, BLOCK)
    used = i < WIDTH
    at = tl.program_id(0).to(tl.int64) * WIDTH + i
    branch_row = widened(tl.load(branch + at, mask=used, other=0.0))
    post = widened(tl.load(post_weight + i, mask=used, other=0.0))
    normed = rounded(_normed(branch_row, post, WIDTH, eps), out.dtype.element_ty)
    before = widened(tl.load(residual + at, mask=used, other=0.0))
    total = rounded(before + widened(normed), out.dtype.element_ty)
    tl.store(sums + at, total, mask=used)
    after = widened(tl.load(next_weight + i, mask=used, other=0.0))
    result = _normed(widened(total), after, WIDTH, eps)
    tl.store(out + at, rounded(result, out.dtype.element_ty), mask=used)
