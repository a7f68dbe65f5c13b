"""When one copy of an expert is not enough: large batches spread over copies, small ones stay.

A shard that gets few rows per expert is bound by reading weights, and ranks that ask the same copy
share its read: there an expert's rows always go to its first copy. From `ROWS_PER_EXPERT` on the
time goes into arithmetic, and a shard with far more rows than the others keeps them waiting. Pure.

E experts, C copies, S shards.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from router.plan import Int32, Int64

LEAST_ROWS = 2048
"""Smaller batches, such as decodes of hundreds of streams, are not looked at: it costs some 60 us a
layer."""
ROWS_PER_EXPERT = 16
"""Of the busiest shard, on average: from 8 to 16 rows on, the CPU kernels reach their arithmetic
peak instead of the memory's."""
MARGIN = 1.25
"""Times the mean rows of a shard that the busiest may have."""


def spread(rows_E: Int64, ranked_EC: Int32, num_shards: int) -> Int32:
    """Return (E,) the position of the copy to ask for each expert.

    Args:
        rows_E: of the batch.
        ranked_EC: positions of copies that may be asked, preferred first, then -1.
        num_shards: of the placement.

    Whole experts move: no weights are read twice. The first copies stay chosen when the busiest
    shard is bound by reading, when it is not far above the mean, or when nothing better is found.
    """
    first_E = ranked_EC[:, 0].copy()
    hit_E = (rows_E > 0) & (first_E >= 0)
    load_S = _load(rows_E, first_E, hit_E, num_shards)
    busiest = int(load_S.argmax())
    num_experts = np.count_nonzero(hit_E & (first_E == busiest))
    num_usable = max(1, len(np.unique(ranked_EC[ranked_EC >= 0])))
    if load_S[busiest] < max(ROWS_PER_EXPERT * num_experts, MARGIN * load_S.sum() / num_usable):
        return first_E
    chosen_E = first_E.copy()
    movable_E = hit_E & ((ranked_EC >= 0).sum(axis=1) > 1)
    fill_S = _load(rows_E, first_E, hit_E & ~movable_E, num_shards)
    movable = np.flatnonzero(movable_E)
    # The largest first, each to whoever has least: the usual bound is 4/3 of the best.
    for expert in movable[np.argsort(-rows_E[movable], kind="stable")]:
        copies = ranked_EC[expert][ranked_EC[expert] >= 0]
        chosen_E[expert] = copy = copies[fill_S[copies].argmin()]
        fill_S[copy] += rows_E[expert]
    return chosen_E if fill_S.max() < load_S[busiest] else first_E


def _load(
    rows_E: Int64, owner_E: Int32, which_E: npt.NDArray[np.bool_], num_shards: int
) -> npt.NDArray[np.float64]:
    """(S,): rows by shard, of some of the experts."""
    return np.bincount(owner_E[which_E], rows_E[which_E], num_shards).astype(np.float64)
