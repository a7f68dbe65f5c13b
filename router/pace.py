"""How long shards take to answer, and from when on a call counts as late. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection

from router.copies import ShardKey

WINDOW = 128
"""Calls of one shard and size that are remembered."""
LEAST_CALLS = 16
"""With fewer, nothing is known about a shard and size, and no call is late."""
_QUANTILE = 0.99
_SLOWEST = 4.0
"""So many times the quickest shard's 99th percentile a shard's own may count. Else one that is slow
for a while, though never quite late, makes slowness the rule by which it is measured; shards of
other hardware may well be slower than the quickest."""


class Pace:
    """Round trips by (shard, size class): calls whose rows have equally many binary digits.

    The limit of a class is `factor` times the 99th percentile of its last 128 round trips, at least
    `floor_s`. Taking note costs two look-ups; the percentile is computed when somebody asks, which
    is when a call is overdue already.
    """

    def __init__(self, factor: float, floor_s: float) -> None:
        self._factor = factor
        self._floor_s = floor_s
        self._took_s: dict[ShardKey, dict[int, deque[float]]] = {}

    def note(self, key: ShardKey, num_rows: int, took_s: float) -> None:
        """Take note of a round trip."""
        classes = self._took_s.get(key)
        if classes is None:
            classes = self._took_s[key] = {}
        size = num_rows.bit_length()
        times = classes.get(size)
        if times is None:
            times = classes[size] = deque(maxlen=WINDOW)
        times.append(took_s)

    def limit_s(self, key: ShardKey, num_rows: int) -> float:
        """Return how long such a call may take; infinity for what was not measured often enough."""
        size = num_rows.bit_length()
        own_s = _p99_s(self._took_s.get(key, {}).get(size, ()))
        if own_s == math.inf:
            return math.inf
        quickest_s = min(_p99_s(classes.get(size, ())) for classes in self._took_s.values())
        return max(self._floor_s, self._factor * min(own_s, _SLOWEST * quickest_s))

    def forget(self, key: ShardKey) -> None:
        """Drop what is known about a shard: it may never come back."""
        self._took_s.pop(key, None)


def _p99_s(times: Collection[float]) -> float:
    if len(times) < LEAST_CALLS:
        return math.inf
    return sorted(times)[math.ceil(_QUANTILE * len(times)) - 1]
