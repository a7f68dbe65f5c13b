"""Which rank a request goes to: the least loaded, or the one its session knows if that is no worse.

Pure: loads go in, an order of preference comes out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

STICKY_MARGIN = 8
"""A session stays on its rank while that has at most so many more open calls than the least."""


@dataclass(frozen=True, slots=True)
class RankLoad:
    """A rank that may be chosen, and how many calls it has open."""

    rank: str
    open_calls: int


def order_ranks(loads: Sequence[RankLoad], session_id: str = "") -> list[str]:
    """Return the ranks, best first.

    Ties are broken by the session's hash, so that sessions spread and each keeps its own order: a
    rank that joins or leaves moves only the sessions it wins or held (rendezvous hashing).
    """
    if not loads:
        return []
    by_hash = sorted(loads, key=lambda load: _weight(session_id, load.rank), reverse=True)
    order = sorted(by_hash, key=lambda load: load.open_calls)
    if session_id:
        least = order[0].open_calls
        favourite = by_hash[0]
        if favourite.open_calls <= least + STICKY_MARGIN:
            order.remove(favourite)
            order.insert(0, favourite)
    return [load.rank for load in order]


def _weight(session_id: str, rank: str) -> bytes:
    return hashlib.blake2b(f"{session_id}\0{rank}".encode(), digest_size=8).digest()
