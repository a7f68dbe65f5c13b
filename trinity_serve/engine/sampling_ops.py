"""The vocabulary-wide arithmetic of sampling, in numpy.

Every result is a function of one row alone: sums run over a fixed binary tree within chunks of
1,024 columns and then chunk by chunk, never through a library reduction that may choose another
order for another shape. `VocabularyOps` is the seam where a C or GPU backend replaces it.

R rows, V vocabulary, C chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from trinity_serve.model.batch import Int64

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

SUM_CHUNK = 1024
_STRIPES = 64
"""A row is cut into so many equal parts to bound its k-th best from below; any number is right."""
_DEPTHS = (2.0, 5.0, 10.0)
"""How far below the best (in nats) candidates are looked for, in turn; any numbers are right."""


@dataclass(frozen=True, slots=True)
class DrawSpec:
    """One row's distribution and where in it to draw. `top_k` 0, `top_p` 1, `min_p` 0 are off."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    uniform: float


class VocabularyOps(Protocol):
    """What the sampler needs to know about rows of logits."""

    def argmax(self, logits_RV: Float32) -> Int64:
        """Return each row's largest logit's id, the lowest of equals; the first NaN if any."""
        ...

    def log_sum_exp(self, logits_RV: Float32, max_R: Float32) -> Float64:
        """Return log(sum(exp(row))) of each row, given its (finite) maximum."""
        ...

    def draw(self, logits_RV: Float32, max_R: Float32, specs: list[DrawSpec]) -> list[int]:
        """Return one id per row, as `draw_from_row` defines it."""
        ...

    def best(self, logits_V: Float32, count: int) -> Int64:
        """Return the `count` best ids of a row, by (logit descending, id ascending)."""
        ...


class NumpyVocabularyOps:
    """The meaning of each op, and fast enough for vocabularies of some thousands."""

    def argmax(self, logits_RV: Float32) -> Int64:
        """See `VocabularyOps`."""
        best_R: Int64 = np.argmax(logits_RV, axis=1).astype(np.int64)
        return best_R

    def log_sum_exp(self, logits_RV: Float32, max_R: Float32) -> Float64:
        """See `VocabularyOps`."""
        max_R1 = max_R.astype(np.float64)[:, None]
        return max_R1[:, 0] + np.log(row_sums(np.exp(logits_RV - max_R1)))

    def draw(self, logits_RV: Float32, max_R: Float32, specs: list[DrawSpec]) -> list[int]:
        """See `VocabularyOps`."""
        temperature_R1 = np.array([spec.temperature for spec in specs])[:, None]
        scaled_RV = (logits_RV - max_R.astype(np.float64)[:, None]) / temperature_R1
        weights_RV = np.exp(scaled_RV)
        totals_R = row_sums(weights_RV).tolist()
        return [
            draw_from_row(logits_RV[row], scaled_RV[row], weights_RV[row], totals_R[row], spec)
            for row, spec in enumerate(specs)
        ]

    def best(self, logits_V: Float32, count: int) -> Int64:
        """See `VocabularyOps`."""
        return sorted_prefix(logits_V, count)[:count]


def row_sums(values_RV: Float64) -> Float64:
    """Return each row's sum, in an order fixed by V alone."""
    num_rows, width = values_RV.shape
    num_chunks = -(-width // SUM_CHUNK)
    if width % SUM_CHUNK:
        padded = np.zeros((num_rows, num_chunks * SUM_CHUNK))
        padded[:, :width] = values_RV
        values_RV = padded
    tree = values_RV.reshape(num_rows, num_chunks, SUM_CHUNK)
    half = SUM_CHUNK // 2
    while half:
        tree = tree[:, :, :half] + tree[:, :, half : 2 * half]
        half //= 2
    sums_RC = tree[:, :, 0]
    # accumulate is sequential by definition, reduce is not.
    total_R: Float64 = np.add.accumulate(sums_RC, axis=1)[:, -1]
    return total_R


def sorted_prefix(logits_V: Float32, count: int) -> Int64:
    """Return the ids of at least the `count` best logits, by (logit descending, id ascending).

    The result is a prefix of the whole row's order: it holds every id whose logit equals the last.
    """
    width = len(logits_V) // _STRIPES
    if count >= width:
        return _sorted(logits_V, np.arange(len(logits_V), dtype=np.int64))
    # `count` stripes have a maximum of at least the count-th largest one: so many logits reach it.
    stripe_max = logits_V[: width * _STRIPES].reshape(_STRIPES, width).max(axis=0)
    threshold = np.partition(stripe_max, width - count)[width - count]
    return _sorted(logits_V, np.flatnonzero(logits_V >= threshold))


def _sorted(logits_V: Float32, ids: Int64) -> Int64:
    """Return `ids` (ascending) by (logit descending, id ascending).

    One integer per id that sorts so: integer sorts have no ties to break and are vectorised.
    """
    # Adding 0.0 makes -0.0 equal to 0.0.
    bits = (logits_V[ids] + np.float32(0.0)).view(np.uint32)
    ascending = np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))
    keys = (~ascending).astype(np.uint64) << np.uint64(32) | ids.astype(np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


def draw_from_row(
    logits_V: Float32, scaled_V: Float64, weights_V: Float64, total: float, spec: DrawSpec
) -> int:
    """Draw an id by the inverse of the cumulative weights over the kept ids, best first.

    Kept are ids whose scaled logit is within log(min_p) of the best, of these the `top_k` best, of
    these the shortest prefix that holds at least `top_p` of their weight. `weights_V` is
    exp(scaled_V) with scaled_V = (logits - max) / temperature; `total` is their sum in id order.
    Ids are sorted only as far as needed: cumulative sums of a prefix do not depend on what
    follows, so the result is that of the full sort.
    """
    order = _kept(logits_V, scaled_V, spec)
    if order is not None:
        cumulative = np.add.accumulate(weights_V[order])
        return _pick(cumulative, order, float(cumulative[-1]), spec)
    needed = total * (spec.top_p if spec.top_p < 1.0 else spec.uniform)
    for depth in _DEPTHS:
        candidates = np.flatnonzero(scaled_V >= -depth)
        if weights_V[candidates].sum() > needed:
            order = _sorted(logits_V, candidates)
            cumulative = np.add.accumulate(weights_V[order])
            if cumulative[-1] > needed:
                return _pick(cumulative, order, total, spec)
    order = _sorted(logits_V, np.arange(len(logits_V), dtype=np.int64))
    return _pick(np.add.accumulate(weights_V[order]), order, total, spec)


def _kept(logits_V: Float32, scaled_V: Float64, spec: DrawSpec) -> Int64 | None:
    """Return the ids that min_p and top_k keep, best first; None if that is all of them."""
    if spec.min_p > 0.0:
        kept = np.flatnonzero(scaled_V >= np.log(spec.min_p))
        if len(kept) < len(logits_V):
            order = _sorted(logits_V, kept)
            return order[: spec.top_k] if spec.top_k > 0 else order
    if 0 < spec.top_k < len(logits_V):
        return sorted_prefix(logits_V, spec.top_k)[: spec.top_k]
    return None


def _pick(cumulative: Float64, order: Int64, total: float, spec: DrawSpec) -> int:
    if spec.top_p < 1.0:
        # The first position whose cumulative weight reaches the share is the last one kept.
        last = min(int(np.searchsorted(cumulative, spec.top_p * total)), len(order) - 1)
        total = float(cumulative[last])
    position = int(np.searchsorted(cumulative, spec.uniform * total, side="right"))
    if position < len(order):
        return int(order[position])
    # Rounding can leave the whole row's cumulative sum just short of its total in id order.
    return int(order[int(np.searchsorted(cumulative, cumulative[-1]))])
