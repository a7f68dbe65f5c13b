"""QK-norm and rotary of a row's heads; K and V go to the cache, q to the caller.

H query heads, K KV heads, d head_dim. A row's q and k heads lie side by side in the fused
projection and are one block of (H + K, d). One row per program on a GPU; the interpreter takes
several, because there an operation costs the same for one as for eight.
"""

from __future__ import annotations

import triton.language as tl

from experts.kernels.cuda.numbers import jit, jit_without, rounded, widened
from trinity_serve.model.kernels.cuda.norm import inverse_rms


@jit
def _rotated(
    own: tl.tensor,
    partner: tl.tensor,
    cos: tl.tensor,
    signed_sin: tl.tensor,
    DTYPE: tl.constexpr,
) -> tl.tensor:
    """Own * cos + partner * signed_sin, the products and the sum rounded, as eager torch does."""
    first = widened(rounded(widened(own) * widened(rounded(cos, DTYPE)), DTYPE))
    second = widened(rounded(widened(partner) * widened(rounded(signed_sin, DTYPE)), DTYPE))
    return rounded(first + second, DTYPE)


@jit_without("num_rows")
def write_kv_kernel(
    qkvg: tl.tensor,
    q_norm: tl.tensor,
    k_norm: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    rope: tl.tensor,
    q_out: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    num_rows: tl.tensor,
    eps: tl.tensor,
    H: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    ROTATE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Program = ROWS rows. `keys` and `values` are one layer's (blocks, K, TILE, d).

    A row with a negative slot pads a captured batch: nothing of it goes to the cache.
    """
    dtype: tl.constexpr = q_out.dtype.element_ty
    width: tl.constexpr = (2 * H + 2 * K) * D
    d = tl.arange(0, BLOCK_D)[None, :]
    place = tl.arange(0, ROWS * BLOCK_HEADS)[:, None]
    head = place % BLOCK_HEADS
    row = (tl.program_id(0) * ROWS + place // BLOCK_HEADS).to(tl.int64)
    is_query = head < H
    is_row = (row < num_rows) & (head < H + K)
    used = is_row & (d < D)
    source = qkvg + row * width + head * D

    x = widened(tl.load(source + d, mask=used, other=0.0))
    weight_q = widened(tl.load(q_norm + d, mask=d < D, other=0.0))
    weight_k = widened(tl.load(k_norm + d, mask=d < D, other=0.0))
    inverse = inverse_rms(tl.sum(x * x, axis=1, keep_dims=True), D, eps)
    result = rounded(tl.where(is_query, weight_q, weight_k) * (x * inverse), dtype)
    if ROTATE:
        half: tl.constexpr = D // 2
        other = tl.where(d < half, d + half, d - half)
        pair_x = widened(tl.load(source + other, mask=used, other=0.0))
        pair_q = widened(tl.load(q_norm + other, mask=d < D, other=0.0))
        pair_k = widened(tl.load(k_norm + other, mask=d < D, other=0.0))
        pair = rounded(tl.where(is_query, pair_q, pair_k) * (pair_x * inverse), dtype)
        angle = rope + tl.load(positions + row, mask=is_row, other=0) * D + d % half
        cos = tl.load(angle, mask=used, other=0.0)
        sin = tl.load(angle + half, mask=used, other=0.0)
        # (first, second) turns into (first cos - second sin, second cos + first sin).
        result = _rotated(result, pair, cos, tl.where(d < half, -sin, sin), dtype)

    tl.store(q_out + row * (H * D) + head * D + d, result, mask=used & is_query)
    slot = tl.load(slots + row, mask=is_row, other=-1)
    to = (slot // TILE) * (K * TILE * D) + (slot % TILE) * D
    own = used & (head >= H) & (slot >= 0)
    tl.store(keys + to + (head - H) * (TILE * D) + d, result, mask=own)

    place_v = tl.arange(0, ROWS * BLOCK_K)[:, None]
    head_v = place_v % BLOCK_K
    row_v = (tl.program_id(0) * ROWS + place_v // BLOCK_K).to(tl.int64)
    is_v = (row_v < num_rows) & (head_v < K)
    slot_v = tl.load(slots + row_v, mask=is_v, other=-1)
    to_v = (slot_v // TILE) * (K * TILE * D) + (slot_v % TILE) * D
    used_v = is_v & (d < D) & (slot_v >= 0)
    v = tl.load(qkvg + row_v * width + (H + K + head_v) * D + d, mask=used_v)
    tl.store(values + to_v + head_v * (TILE * D) + d, v, mask=used_v)
