"""Which rank a request goes to: where its prefix is cached, where its session is, or least loaded.

Pure: loads and cached prefixes go in, an order of preference comes out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Set
from dataclasses import dataclass

STICKY_MARGIN = 8
"""A session, or a cached prefix, draws to its rank while that has at most so many more open calls
than the least loaded."""
TOKENS_PER_CALL = 128
"""Cached tokens that make up for one more open call.

A call that decodes beside another spends about one row more on each of its own steps, and it has
some hundred of them; a cached token spares one row of prefill.
"""


@dataclass(frozen=True, slots=True)
class RankLoad:
    """A rank that may be chosen: its open calls, and the request's tokens it has cached."""

    rank: str
    open_calls: int
    cached_tokens: int = 0

    @property
    def cost(self) -> int:
        """Open calls less those that the cached prefix makes up for."""
        return self.open_calls - min(STICKY_MARGIN, self.cached_tokens // TOKENS_PER_CALL)


def order_ranks(
    loads: Sequence[RankLoad], session_id: str = "", refused_by: Set[str] = frozenset()
) -> list[str]:
    """Return the ranks, best first, without those that had no room, as long as there are others.

    Without a session the longest cached prefix comes first, unless its rank is loaded beyond what
    the prefix makes up for; among ranks that are equal in that, the least loaded.
    Ties are broken by the session's hash, so that sessions spread and each keeps its own order: a
    rank that joins or leaves moves only the sessions it wins or held (rendezvous hashing).
    """
    if not loads:
        return []
    loads = [load for load in loads if load.rank not in refused_by] or loads
    by_hash = sorted(loads, key=lambda load: _weight(session_id, load.rank), reverse=True)
    order = sorted(by_hash, key=lambda load: (load.cost, -load.cached_tokens, load.open_calls))
    if session_id:
        least = min(load.open_calls for load in loads)
        favourite = by_hash[0]
        if favourite.open_calls <= least + STICKY_MARGIN:
            order.remove(favourite)
            order.insert(0, favourite)
    return [load.rank for load in order]


def _weight(session_id: str, rank: str) -> bytes:
    return hashlib.blake2b(f"{session_id}\0{rank}".encode(), digest_size=8).digest()
