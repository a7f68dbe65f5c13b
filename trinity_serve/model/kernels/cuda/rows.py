"""Ops that see one row at a time: the gate, combine, the embedding.

T tokens, D hidden, E experts, K slots. Nothing here is reduced but by maximum, minimum and in slot
order, so blocks of any size give the same bits.
"""

from __future__ import annotations

import triton.language as tl

from experts.kernels.cuda.numbers import jit, jit_without, rounded, widened
from trinity_serve.model.kernels.cuda.exact import sigmoid


@jit_without("num_tokens")
def gate_topk_kernel(
    logits: tl.tensor,
    bias: tl.tensor,
    ids: tl.tensor,
    weights: tl.tensor,
    num_tokens: tl.tensor,
    route_scale: tl.tensor,
    E: tl.constexpr,
    K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Program = BLOCK_T tokens. NaN counts as the largest: it is chosen and shows in weights."""
    token = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)[:, None]
    expert = tl.arange(0, BLOCK_E)[None, :]
    slot = tl.arange(0, BLOCK_K)[None, :]
    used = (token < num_tokens) & (expert < E)
    score = sigmoid(tl.load(logits + token * E + expert, mask=used, other=0.0))
    biased = score + tl.load(bias + expert, mask=expert < E, other=0.0)
    biased = tl.where(biased < float("inf"), biased, float("inf"))
    free = (expert < E) & (token >= 0)
    ids_TK = tl.zeros((BLOCK_T, BLOCK_K), tl.int64)
    weights_TK = tl.zeros((BLOCK_T, BLOCK_K), tl.float32)
    total = tl.zeros((BLOCK_T, 1), tl.float32)
    for k in tl.static_range(K):
        left = tl.where(free, biased, -float("inf"))
        peak = tl.max(left, axis=1, keep_dims=True)
        best = tl.min(tl.where(free & (left == peak), expert, BLOCK_E), axis=1, keep_dims=True)
        free = free & (expert != best)
        # One term is not zero.
        weight = tl.sum(tl.where(expert == best, score, 0.0), axis=1, keep_dims=True)
        ids_TK = tl.where(slot == k, best.to(tl.int64), ids_TK)
        weights_TK = tl.where(slot == k, weight, weights_TK)
        total = weight if k == 0 else total + weight
    divisor = tl.broadcast_to(total + 1e-20, (BLOCK_T, BLOCK_K))
    weights_TK = tl.div_rn(weights_TK, divisor) * route_scale
    kept = (token < num_tokens) & (slot < K)
    tl.store(ids + token * K + slot, ids_TK, mask=kept)
    tl.store(weights + token * K + slot, weights_TK, mask=kept)


@jit
def combine_kernel(
    rows: tl.tensor,
    row_of_slot: tl.tensor,
    topk_weights: tl.tensor,
    shared: tl.tensor,
    out: tl.tensor,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Program = (token, piece of the row): weight times row, slot by slot, then the shared row."""
    token = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    used = i < WIDTH
    total = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(K):
        row = tl.load(row_of_slot + token * K + k)
        expert_row = widened(tl.load(rows + row * WIDTH + i, mask=used, other=0.0))
        weighted = tl.load(topk_weights + token * K + k) * expert_row
        total = weighted if k == 0 else total + weighted
    total = total + widened(tl.load(shared + token * WIDTH + i, mask=used, other=0.0))
    tl.store(out + token * WIDTH + i, rounded(total, out.dtype.element_ty), mask=used)


@jit
def embed_kernel(
    ids: tl.tensor,
    table: tl.tensor,
    out: tl.tensor,
    scale: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Program = (token, piece of the row): table[id] * scale, rounded once."""
    token = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    used = i < WIDTH
    row = widened(tl.load(table + tl.load(ids + token) * WIDTH + i, mask=used, other=0.0))
    tl.store(out + token * WIDTH + i, rounded(row * scale, out.dtype.element_ty), mask=used)
