"""Which experts get one copy more than the others, out of a budget in bytes.

The first go to those whose loss would cost most: the rows that would wait for a respawn, which are
none when another copy stands on another node. Those that are there stay until another one is worth
clearly more, since a copy that changes reads an expert's weights. Pure.

L MoE layers, E experts, R copies, S seats.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cluster.balance import shares_of
from cluster.load_stats import LoadLE
from cluster.planner import Int32, Seat

KEEP = 1.5
"""A further copy stays until another expert's would be worth so many times as much."""
PARTED = 0.25
"""Worth of a further copy where there are two on different nodes: it only evens out load."""

Limits = tuple[int, int]
"""(most further copies, most of them new)."""


def num_spares(plan_LER: Int32, num_replicas: int) -> int:
    """Return how many copies there are beyond `num_replicas` of each expert."""
    return int(np.count_nonzero(plan_LER >= 0)) - num_replicas * plan_LER[:, :, 0].size


def plan_spares(
    plan_LER: Int32, num_replicas: int, load_LE: LoadLE, seats: Sequence[Seat], limits: Limits
) -> tuple[Int32, int]:
    """Return (L, E, num_replicas + 1) the plan with further copies, and how many are new.

    Args:
        plan_LER: as it is, primary first, -1 for none; at most one copy more than `num_replicas`.
        num_replicas: what every expert has.
        load_LE: decayed rows.
        seats: all of them, in the order of their indexes.
        limits: how many further copies there may be (whole plan), and how many of them new.
    """
    max_spares, max_new = limits
    if plan_LER.shape[2] == num_replicas:
        plan_LER = np.pad(plan_LER, ((0, 0), (0, 0), (0, 1)), constant_values=-1)
    plan_LER = plan_LER.copy()
    has_LE = plan_LER[:, :, num_replicas] >= 0
    worth_LE = _worth(plan_LER[:, :, :num_replicas], load_LE, seats) * np.where(has_LE, KEEP, 1.0)
    order_N = np.argsort(-worth_LE.ravel(), kind="stable")[: max(max_spares, 0)]
    wanted_LE = np.zeros_like(has_LE)
    wanted_LE.flat[order_N] = worth_LE.flat[order_N] > 0
    new_N = [n for n in order_N.tolist() if wanted_LE.flat[n] and not has_LE.flat[n]][:max_new]
    # One is given up only for one that takes its place now, or when the budget has shrunk.
    num_kept = max(max_spares, 0) - len(new_N)
    kept_N = [n for n in np.argsort(-worth_LE.ravel(), kind="stable").tolist() if has_LE.flat[n]]
    for n in kept_N[num_kept:]:
        plan_LER.reshape(-1, num_replicas + 1)[n, num_replicas] = -1
    # Even over the seats, but for one more where that keeps copies apart.
    num_new = _put(plan_LER, new_N, seats, -(-max_spares // len(seats)) + 1)
    return plan_LER, num_new


def _worth(plan_LER: Int32, load_LE: LoadLE, seats: Sequence[Seat]) -> LoadLE:
    """(L, E): rows that a further copy would keep from waiting."""
    shares_SS = shares_of(seats)
    first_LE1 = plan_LER[:, :, :1]
    parted_LE = (shares_SS[first_LE1, plan_LER[:, :, 1:]] == 0).any(axis=2)
    return np.asarray(load_LE * np.where(parted_LE, PARTED, 1.0))


def _put(plan_LER: Int32, new_N: Sequence[int], seats: Sequence[Seat], capacity: int) -> int:
    """Give each of these experts its further copy in place; return how many found a seat."""
    num_replicas = plan_LER.shape[2] - 1
    plan_NR, shares_SS = plan_LER.reshape(-1, num_replicas + 1), shares_of(seats)[:-1]
    spares_N = plan_NR[:, num_replicas]
    count_S = np.bincount(spares_N[spares_N >= 0], minlength=len(seats))
    num_new = 0
    for n in new_N:
        copies = plan_NR[n, :num_replicas]
        shared_S = shares_SS[:, copies].sum(axis=1)
        open_S = count_S < capacity
        open_S[copies] = False
        if open_S.any():
            # Apart first, then where there are fewest.
            badness_S = shared_S * (capacity + 1) + count_S
            seat = int(np.where(open_S, badness_S, np.iinfo(np.int64).max).argmin())
            plan_NR[n, num_replicas] = seat
            count_S[seat] += 1
            num_new += 1
    return num_new
