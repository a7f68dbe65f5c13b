"""How long shards take to answer, and from when on a call counts as late. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping

from router.copies import ShardKey

WINDOW = 128
"""Calls of one shard and size that are remembered."""
LEAST_CALLS = 16
"""With fewer, nothing is known about a shard and size."""
_QUANTILE = 0.99
_SLOWEST = 4.0
"""So many times the quickest shard's 99th percentile a shard's own may count. Else one that is slow
for a while, though never quite late, makes slowness the rule by which it is measured; shards of
other hardware may well be slower than the quickest."""


class Pace:
    """Round trips by (shard, size class): calls whose rows have equally many binary digits.

    The limit of a class is `factor` times the 99th percentile of its last 128 round trips, at least
    `floor_s`. A class that was seen too rarely goes by the next larger one that was not, else by
    the largest, with the time that so many more rows take at most: twice as many, twice as long.
    Taking note costs two look-ups; percentiles are computed when somebody asks, which is when a
    call is overdue already.
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
        """Return how long such a call may take; infinity for a shard that is not known yet."""
        size = num_rows.bit_length()
        own_s = _expected_s(self._took_s.get(key, {}), size)
        if own_s == math.inf:
            return math.inf
        quickest_s = min(_expected_s(classes, size) for classes in self._took_s.values())
        return max(self._floor_s, self._factor * min(own_s, _SLOWEST * quickest_s))

    def forget(self, key: ShardKey) -> None:
        """Drop what is known about a shard: it may never come back."""
        self._took_s.pop(key, None)


def _expected_s(classes: Mapping[int, Collection[float]], size: int) -> float:
    """Return the 99th percentile of one shard's calls of a size, or what other sizes tell of it."""
    known = [each for each, times in classes.items() if len(times) >= LEAST_CALLS]
    if not known:
        return math.inf
    nearest = min((each for each in known if each >= size), default=max(known))
    times = sorted(classes[nearest])
    p99_s = times[math.ceil(_QUANTILE * len(times)) - 1]
    return p99_s * 2.0 ** max(0, size - nearest)
