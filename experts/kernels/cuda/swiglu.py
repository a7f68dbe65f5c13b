"""`grouped_swiglu` in two products over ragged groups, each one launch.

D hidden, F expert width, N rows, G groups. The weights of an expert are found by its address in
device memory (see `table`); which group a program belongs to, by `schedule.find_tile`.
"""

from __future__ import annotations

import triton.language as tl

from experts.kernels.cuda.numbers import dot, jit_without, rounded, silu
from experts.kernels.cuda.schedule import find_tile
from experts.kernels.cuda.weights import matrix_tile


@jit_without("num_groups")
def gate_up_kernel(
    x: tl.tensor,
    act: tl.tensor,
    token_idx: tl.tensor,
    expert_ids: tl.tensor,
    row_offsets: tl.tensor,
    addresses: tl.tensor,
    num_groups: tl.tensor,
    hidden: tl.tensor,
    width: tl.tensor,
    gate_at: tl.tensor,
    up_at: tl.tensor,
    scales_at: tl.tensor,
    overall_at: tl.tensor,
    FORM: tl.constexpr,
    GROUP: tl.constexpr,
    MAX_GROUPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
) -> None:
    """Write act (N, F) = silu(gate(x)) * up(x), in float32 and rounded once; x is gathered by row.

    `scales_at` and `overall_at` count from the matrix, `gate_at` and `up_at` from the expert.
    """
    m_blocks = (width + (BLOCK_M - 1)) // BLOCK_M
    group, m_block, first, end = find_tile(
        tl.program_id(0), row_offsets, num_groups, m_blocks, MAX_GROUPS, BLOCK_N
    )
    if group >= num_groups:
        return
    expert = tl.load(addresses + tl.load(expert_ids + group))
    m = m_block * BLOCK_M + tl.arange(0, BLOCK_M)
    n = first + tl.arange(0, BLOCK_N)
    # Beyond the last row and output: copies of it, not stored.
    m_read = tl.minimum(m, width - 1).to(tl.int64)
    token = tl.load(token_idx + tl.minimum(n, end - 1)).to(tl.int64)
    rows = x + token[None, :] * hidden
    dtype: tl.constexpr = x.dtype.element_ty
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, hidden, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        if EVEN_K:
            x_KN = tl.load(rows + k[:, None])
        else:
            x_KN = tl.load(rows + k[:, None], mask=k[:, None] < hidden, other=0)
        gate_MK = matrix_tile(
            expert + gate_at,
            scales_at,
            overall_at,
            m_read,
            start,
            hidden,
            FORM,
            GROUP,
            dtype,
            BLOCK_M,
            BLOCK_K,
            EVEN_K,
        )
        gate = dot(gate_MK, x_KN, gate)
        up_MK = matrix_tile(
            expert + up_at,
            scales_at,
            overall_at,
            m_read,
            start,
            hidden,
            FORM,
            GROUP,
            dtype,
            BLOCK_M,
            BLOCK_K,
            EVEN_K,
        )
        up = dot(up_MK, x_KN, up)
    places = act + n.to(tl.int64)[None, :] * width + m[:, None]
    inside = (m[:, None] < width) & (n[None, :] < end)
    tl.store(places, rounded(silu(gate) * up, dtype), mask=inside)


@jit_without("num_groups")
def down_kernel(
    act: tl.tensor,
    out: tl.tensor,
    expert_ids: tl.tensor,
    row_offsets: tl.tensor,
    addresses: tl.tensor,
    num_groups: tl.tensor,
    hidden: tl.tensor,
    width: tl.tensor,
    down_at: tl.tensor,
    scales_at: tl.tensor,
    overall_at: tl.tensor,
    FORM: tl.constexpr,
    GROUP: tl.constexpr,
    MAX_GROUPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
) -> None:
    """Write out (N, D) = down(act), rounded once."""
    m_blocks = (hidden + (BLOCK_M - 1)) // BLOCK_M
    group, m_block, first, end = find_tile(
        tl.program_id(0), row_offsets, num_groups, m_blocks, MAX_GROUPS, BLOCK_N
    )
    if group >= num_groups:
        return
    expert = tl.load(addresses + tl.load(expert_ids + group))
    m = m_block * BLOCK_M + tl.arange(0, BLOCK_M)
    n = first + tl.arange(0, BLOCK_N)
    m_read = tl.minimum(m, hidden - 1).to(tl.int64)
    rows = act + tl.minimum(n, end - 1).to(tl.int64)[None, :] * width
    dtype: tl.constexpr = act.dtype.element_ty
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, width, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        if EVEN_K:
            act_KN = tl.load(rows + k[:, None])
        else:
            act_KN = tl.load(rows + k[:, None], mask=k[:, None] < width, other=0)
        down_MK = matrix_tile(
            expert + down_at,
            scales_at,
            overall_at,
            m_read,
            start,
            width,
            FORM,
            GROUP,
            dtype,
            BLOCK_M,
            BLOCK_K,
            EVEN_K,
        )
        acc = dot(down_MK, act_KN, acc)
    places = out + n.to(tl.int64)[None, :] * hidden + m[:, None]
    inside = (m[:, None] < hidden) & (n[None, :] < end)
    tl.store(places, rounded(acc, dtype), mask=inside)
