"""`linear`: one matrix, one group of rows. M output width, N rows, K input width."""

from __future__ import annotations

import triton.language as tl

from experts.kernels.cuda.numbers import dot, jit_without, rounded, widened
from experts.kernels.cuda.weights import plain_tile


@jit_without("num_rows", "num_n_blocks")
def linear_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    num_rows: tl.tensor,
    num_n_blocks: tl.tensor,
    width: tl.tensor,
    num_columns: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
) -> None:
    """Program = BLOCK_M outputs of BLOCK_N rows; neighbours share the weights.

    Rows and outputs beyond the last are read as copies of it and not stored: what a row gives never
    depends on what is beside it, and no load needs a mask.
    """
    pid = tl.program_id(0)
    m = (pid // num_n_blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (pid % num_n_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_read = tl.minimum(m, width - 1).to(tl.int64)
    rows = x + tl.minimum(n, num_rows - 1).to(tl.int64)[None, :] * num_columns
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, num_columns, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        w_MK = plain_tile(weight, m_read, start, num_columns, BLOCK_K, EVEN_K)
        if EVEN_K:
            x_KN = tl.load(rows + k[:, None])
        else:
            x_KN = tl.load(rows + k[:, None], mask=k[:, None] < num_columns, other=0)
        if weight.dtype.element_ty == tl.float32:
            x_KN = widened(x_KN)
        acc = dot(w_MK, x_KN, acc)
    places = out + n.to(tl.int64)[None, :] * width + m[:, None]
    inside = (m[:, None] < width) & (n[None, :] < num_rows)
    tl.store(places, rounded(acc, out.dtype.element_ty), mask=inside)
