"""The largest logit of each row. V vocabulary."""

from __future__ import annotations

import triton.language as tl

from experts.kernels.cuda.numbers import jit

_LEAST = tl.constexpr(-0x80000000)
_MOST = tl.constexpr(0x7FFFFFFF)


@jit
def order_of(x: tl.tensor) -> tl.tensor:
    """Integers in the order of float32 numbers, int32; -0 and 0 are equal, NaN is the largest."""
    word = (x + 0.0).to(tl.int32, bitcast=True)
    is_nan = x != x  # noqa: PLR0124
    return tl.where(is_nan, _MOST, word ^ ((word >> 31) & _MOST))


@jit
def argmax_kernel(
    logits: tl.tensor,
    best: tl.tensor,
    peaks: tl.tensor,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Program = row: the lowest id of the largest logit, or the first NaN; and that logit."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    peak = tl.full((BLOCK,), _LEAST, tl.int32)
    peak_id = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, V, BLOCK):
        i = first + lane
        x = tl.load(logits + row * V + i, mask=i < V, other=-float("inf"))
        order = tl.where(i < V, order_of(x), _LEAST)
        better = order > peak
        peak = tl.where(better, order, peak)
        peak_id = tl.where(better, i, peak_id)
    largest = tl.max(peak, axis=0)
    chosen = tl.min(tl.where(peak == largest, peak_id, V), axis=0)
    tl.store(best + row, chosen.to(tl.int64))
    tl.store(peaks + row, tl.load(logits + row * V + chosen))
