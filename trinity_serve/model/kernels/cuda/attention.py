"""Paged attention times sigmoid(gate), for decode and prefill alike.

H query heads, K KV heads, G = H / K, d head_dim, M rows of a block: (query position, query head)
pairs of one sequence that share a KV head, S = 32 positions of a KV tile.

KV is walked in chunks of CHUNK tiles at absolute places. Each chunk is an online softmax of its own
from cleared states, and chunks are merged in order. Whether one program walks all chunks of a block
(`attend_kernel`) or each has a program and the states meet in memory (`attend_chunk_kernel`,
`merge_kernel`) changes nothing in any row's arithmetic, so the launch may choose by what fills the
GPU, and a decoded row has the bits of the same row in a prefill. All that a row sums goes through
one matrix instruction: Q K^T, P V, and the sum of P (as P times ones); 16 rows are one warp's,
further rows are further warps'. A tile that is masked for a row leaves it as it was: exp(0) = 1
keeps, exp(-inf) = 0 adds.

Source: online softmax after Milakov and Gimelshein (arXiv:1805.02867); chunks after Flash-Decoding.
"""

from __future__ import annotations

import triton.language as tl

from experts.kernels.cuda.numbers import dot, jit, jit_without, rounded, widened
from trinity_serve.model.kernels.cuda.exact import sigmoid


@jit
def _shrink(peak: tl.tensor, new_peak: tl.tensor) -> tl.tensor:
    """What sums relative to `peak` are worth relative to `new_peak`.

    A row that has seen nothing keeps a peak of -inf: exp(-inf - 0) is 0, never NaN.
    """
    return tl.exp(peak - tl.where(new_peak == -float("inf"), 0.0, new_peak))


@jit
def _attend_chunk(
    q: tl.tensor,
    position: tl.tensor,
    last: tl.tensor,
    table: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    scale: tl.tensor,
    K: tl.constexpr,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    S: tl.constexpr,
    M: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Peak (M, 1), sum of weights (M, 1) and weighted V (M, d) over tiles [begin, end).

    `keys` and `values` are at the KV head; `last` is the last position that any row sees.
    """
    dtype: tl.constexpr = keys.dtype.element_ty
    s = tl.arange(0, S)
    d = tl.arange(0, BLOCK_D)
    peak = tl.full((M, 1), -float("inf"), tl.float32)
    totals = tl.zeros((M, 16), tl.float32)
    acc = tl.zeros((M, BLOCK_D), tl.float32)
    ones = rounded(tl.full((S, 16), 1.0, tl.float32), dtype)
    for tile in range(begin, end):
        at = tl.load(table + tile).to(tl.int64) * (K * S * D)
        k = tl.load(keys + at + s[None, :] * D + d[:, None], mask=d[:, None] < D, other=0.0)
        scores = dot(q, k, tl.zeros((M, S), tl.float32)) * scale
        key = tile * S + s[None, :]
        seen = key <= position
        if WINDOW > 0:
            seen = seen & (key > position - WINDOW)
        scores = tl.where(seen, scores, -float("inf"))
        new_peak = tl.maximum(peak, tl.max(scores, axis=1, keep_dims=True))
        weights = rounded(_shrink(scores, new_peak), dtype)
        decay = _shrink(peak, new_peak)
        # Past `last` a block that is used again has old values, and 0 * NaN is NaN.
        written = (tile * S + s[:, None] <= last) & (d[None, :] < D)
        v = tl.load(values + at + s[:, None] * D + d[None, :], mask=written, other=0.0)
        acc = dot(weights, v, acc * decay)
        totals = dot(weights, ones, totals * decay)
        peak = new_peak
    # All columns are alike.
    return peak, tl.max(totals, axis=1, keep_dims=True), acc


@jit
def _merged(
    peak: tl.tensor,
    total: tl.tensor,
    acc: tl.tensor,
    chunk_peak: tl.tensor,
    chunk_total: tl.tensor,
    chunk_acc: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Add a later chunk: both sides are brought to the larger peak."""
    new_peak = tl.maximum(peak, chunk_peak)
    keep = _shrink(peak, new_peak)
    add = _shrink(chunk_peak, new_peak)
    return new_peak, total * keep + chunk_total * add, acc * keep + chunk_acc * add


@jit
def _store_gated(
    total: tl.tensor,
    acc: tl.tensor,
    qkvg: tl.tensor,
    out: tl.tensor,
    query: tl.tensor,
    head: tl.tensor,
    used: tl.tensor,
    H: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Divide and round, then multiply by the rounded sigmoid of the gate."""
    dtype: tl.constexpr = out.dtype.element_ty
    d = tl.arange(0, BLOCK_D)[None, :]
    kept = used & (d < D)
    # Rows that fill the block have seen nothing.
    divisor = tl.broadcast_to(tl.where(used, total, 1.0), acc.shape)
    mean = rounded(tl.div_rn(acc, divisor), dtype)
    gate_at = query * ((2 * H + 2 * K) * D) + (H + 2 * K + head) * D + d
    gate = rounded(sigmoid(widened(tl.load(qkvg + gate_at, mask=kept, other=0.0))), dtype)
    result = rounded(widened(mean) * widened(gate), dtype)
    tl.store(out + query * (H * D) + head * D + d, result, mask=kept)


@jit
def _first_tile(position: tl.tensor, WINDOW: tl.constexpr, S: tl.constexpr) -> tl.tensor:
    """The first tile that a query at `position` sees."""
    return tl.maximum(position - WINDOW + 1, 0) // S if WINDOW > 0 else position * 0


@jit_without("table_width")
def attend_kernel(
    q: tl.tensor,
    qkvg: tl.tensor,
    out: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    positions: tl.tensor,
    blocks: tl.tensor,
    tables: tl.tensor,
    table_width: tl.tensor,
    scale: tl.tensor,
    H: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    S: tl.constexpr,
    CHUNK: tl.constexpr,
    M: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Program = (block, KV head): all chunks, one after the other.

    `blocks` is int32 (N, 3): sequence, first row, rows. A block without rows pads a captured batch.
    """
    block = tl.program_id(0)
    kv_head = tl.program_id(1)
    first = tl.load(blocks + block * 3 + 1)
    queries = tl.load(blocks + block * 3 + 2)
    if queries > 0:
        group: tl.constexpr = H // K
        row = tl.arange(0, M)[:, None]
        d = tl.arange(0, BLOCK_D)[None, :]
        used = row < queries * group
        query = (first + row // group).to(tl.int64)
        head = kv_head * group + row % group
        position = tl.load(positions + query, mask=used, other=-1).to(tl.int32)
        q_at = query * (H * D) + head * D + d
        q_rows = tl.load(q + q_at, mask=used & (d < D), other=0.0)
        table = tables + tl.load(blocks + block * 3).to(tl.int64) * table_width
        last = tl.load(positions + first + queries - 1).to(tl.int32)
        first_tile = _first_tile(tl.load(positions + first).to(tl.int32), WINDOW, S)
        end_tile = last // S + 1
        peak = tl.full((M, 1), -float("inf"), tl.float32)
        total = tl.zeros((M, 1), tl.float32)
        acc = tl.zeros((M, BLOCK_D), tl.float32)
        for chunk in range(first_tile // CHUNK, (end_tile + CHUNK - 1) // CHUNK):
            chunk_peak, chunk_total, chunk_acc = _attend_chunk(
                q_rows,
                position,
                last,
                table,
                keys + kv_head * (S * D),
                values + kv_head * (S * D),
                tl.maximum(first_tile, chunk * CHUNK),
                tl.minimum(end_tile, chunk * CHUNK + CHUNK),
                scale,
                K,
                D,
                WINDOW,
                S,
                M,
                BLOCK_D,
            )
            peak, total, acc = _merged(peak, total, acc, chunk_peak, chunk_total, chunk_acc)
        _store_gated(total, acc, qkvg, out, query, head, used, H, K, D, BLOCK_D)


@jit_without("table_width", "num_chunks")
def attend_chunk_kernel(
    q: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    positions: tl.tensor,
    blocks: tl.tensor,
    tables: tl.tensor,
    partial_peaks: tl.tensor,
    partial_totals: tl.tensor,
    partial_accs: tl.tensor,
    table_width: tl.tensor,
    num_chunks: tl.tensor,
    scale: tl.tensor,
    H: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    S: tl.constexpr,
    CHUNK: tl.constexpr,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Program = (block, KV head, chunk counted from the block's first): states go to memory.

    `partial_accs` is float32 (N, K, num_chunks, ROWS, d), the others lack d; ROWS <= M are a full
    block's.
    """
    block = tl.program_id(0)
    kv_head = tl.program_id(1)
    first = tl.load(blocks + block * 3 + 1)
    queries = tl.load(blocks + block * 3 + 2)
    if queries > 0:
        last = tl.load(positions + first + queries - 1).to(tl.int32)
        first_tile = _first_tile(tl.load(positions + first).to(tl.int32), WINDOW, S)
        end_tile = last // S + 1
        chunk = first_tile // CHUNK + tl.program_id(2)
        if chunk * CHUNK < end_tile:
            group: tl.constexpr = H // K
            row = tl.arange(0, M)[:, None]
            d = tl.arange(0, BLOCK_D)[None, :]
            used = row < queries * group
            query = (first + row // group).to(tl.int64)
            position = tl.load(positions + query, mask=used, other=-1).to(tl.int32)
            q_at = query * (H * D) + (kv_head * group + row % group) * D + d
            q_rows = tl.load(q + q_at, mask=used & (d < D), other=0.0)
            peak, total, acc = _attend_chunk(
                q_rows,
                position,
                last,
                tables + tl.load(blocks + block * 3).to(tl.int64) * table_width,
                keys + kv_head * (S * D),
                values + kv_head * (S * D),
                tl.maximum(first_tile, chunk * CHUNK),
                tl.minimum(end_tile, chunk * CHUNK + CHUNK),
                scale,
                K,
                D,
                WINDOW,
                S,
                M,
                BLOCK_D,
            )
            unit = (block * K + kv_head).to(tl.int64) * num_chunks + tl.program_id(2)
            to = unit * ROWS + row
            tl.store(partial_peaks + to, peak, mask=used)
            tl.store(partial_totals + to, total, mask=used)
            tl.store(partial_accs + to * D + d, acc, mask=used & (d < D))


@jit_without("num_chunks")
def merge_kernel(
    qkvg: tl.tensor,
    out: tl.tensor,
    positions: tl.tensor,
    blocks: tl.tensor,
    partial_peaks: tl.tensor,
    partial_totals: tl.tensor,
    partial_accs: tl.tensor,
    num_chunks: tl.tensor,
    H: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    S: tl.constexpr,
    CHUNK: tl.constexpr,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Program = (block, KV head): merge the chunks' states in order and finish the rows."""
    block = tl.program_id(0)
    kv_head = tl.program_id(1)
    first = tl.load(blocks + block * 3 + 1)
    queries = tl.load(blocks + block * 3 + 2)
    if queries > 0:
        last = tl.load(positions + first + queries - 1).to(tl.int32)
        first_tile = _first_tile(tl.load(positions + first).to(tl.int32), WINDOW, S)
        end_chunk = (last // S + CHUNK) // CHUNK
        group: tl.constexpr = H // K
        row = tl.arange(0, M)[:, None]
        d = tl.arange(0, BLOCK_D)[None, :]
        used = row < queries * group
        kept = used & (d < D)
        unit = (block * K + kv_head).to(tl.int64) * num_chunks
        peak = tl.full((M, 1), -float("inf"), tl.float32)
        total = tl.zeros((M, 1), tl.float32)
        acc = tl.zeros((M, BLOCK_D), tl.float32)
        for chunk in range(0, end_chunk - first_tile // CHUNK):
            at = (unit + chunk) * ROWS + row
            peak, total, acc = _merged(
                peak,
                total,
                acc,
                tl.load(partial_peaks + at, mask=used, other=-float("inf")),
                tl.load(partial_totals + at, mask=used, other=0.0),
                tl.load(partial_accs + at * D + d, mask=kept, other=0.0),
            )
        query = (first + row // group).to(tl.int64)
        head = kv_head * group + row % group
        _store_gated(total, acc, qkvg, out, query, head, used, H, K, D, BLOCK_D)
