"""Rows that travel one request per frame, and whose rows are not finite. Only when things fail.

N rows, T tokens, B requests.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from cluster.errors import PoisonedRequestError
from cluster.metrics import Metric
from router.handle import Handle
from router.isolation import STRIKES, Isolation, Slots, pick
from router.links import ShardLinks
from router.sender import CallSender


def send_alone(
    handle: Handle, open_handles: Iterable[Handle], links: ShardLinks, sender: CallSender
) -> bool:
    """Send the next request's rows for one shard when nothing else of this rank is in flight.

    Returns whether rows have to wait on: for a living copy, or for news of the shards that ended
    with them. Raises `PoisonedRequestError` when those are gone for good.
    """
    isolation = handle.isolation
    if isolation is None or not isolation.queue or any(each.parts for each in open_handles):
        return False
    request, slots = isolation.queue.popleft()
    shard_N = links.owners(handle.key[2])[slots[0]]
    covered = shard_N[shard_N >= 0]
    if _is_suspected(handle, isolation, request, links) or len(covered) == 0:
        isolation.queue.append((request, slots))
        return True
    here_N = shard_N == covered[0]
    if not here_N.all():
        isolation.queue.append((request, pick(slots, ~here_N)))
    sender.send_slots(handle, pick(slots, here_N))
    sender.metrics.inc(Metric.ISOLATED_CALLS)
    isolation.in_flight = (request, next(iter(handle.parts)))
    return False


def _is_suspected(handle: Handle, isolation: Isolation, request: int, links: ShardLinks) -> bool:
    """Whether enough lives may have ended by this request. Raises when they are gone."""
    strikes = {key for key in isolation.strikes.get(request, ()) if links.stream_ended(key)}
    isolation.strikes[request] = strikes
    if sum(links.gone(key) for key in strikes) >= STRIKES:
        problem = f"its rows alone crashed {len(strikes)} shards"
        raise PoisonedRequestError((request,), handle.key[2], problem)
    return len(strikes) >= STRIKES


def count_non_finite(handle: Handle) -> tuple[int, ...]:
    """Count whose rows are not finite; return whose were not twice (-1: of nobody we know)."""
    for request in _non_finite_requests(handle):
        handle.num_non_finite[request] = handle.num_non_finite.get(request, 0) + 1
    return tuple(sorted(r for r, count in handle.num_non_finite.items() if count > 1))


def take_out_non_finite(handle: Handle) -> Slots:
    """Return the slots whose rows are not finite; all of them when only a sum was not.

    The other rows stay: a second copy may be the one that spoils what the first gave well.
    """
    assert handle.rows_ND is not None
    slots = handle.every_slot()
    bad_N = (~torch.isfinite(handle.rows_ND).all(dim=1)).numpy()
    if not bad_N.any():
        handle.rows_ND = None
        return slots
    # Its own memory: a whole reply's rows may be those of a frame.
    handle.rows_ND = handle.rows_ND.clone()
    return pick(slots, bad_N[slots[2]])


def _non_finite_requests(handle: Handle) -> list[int]:
    """Return whose rows are not finite; -1 stands for all of them together."""
    assert handle.rows_ND is not None
    bad_N = (~torch.isfinite(handle.rows_ND).all(dim=1)).numpy()
    token_T = np.flatnonzero(bad_N[handle.row_of_slot_TK].any(axis=1))
    # Finite rows whose sum is not: no row says whose fault it is.
    if handle.requests is None or len(token_T) == 0:
        return [-1]
    return [int(request) for request in np.unique(handle.requests.of(token_T))]
