"""Shards whose answer was late: who is asked last, and for how long. Pure: time is passed in.

A suspect is trusted again with its next answer. One that is late again and again is not: each time
it is asked first costs a client the wait until its call counts as late, so that from the second
time in a row on it stays suspect for a while after its answer, twice as long each time.
"""

from __future__ import annotations

import math

from router.copies import ShardKey

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 16.0


def pause_s(times_in_a_row: int) -> float:
    """Return how long a shard stays suspect after it has answered."""
    if times_in_a_row < 2:
        return 0.0
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(times_in_a_row - 2, 16))


class Suspects:
    """The shards that one rank asks last."""

    def __init__(self) -> None:
        self._until_s: dict[ShardKey, float] = {}
        """Infinity until the shard answers."""
        self._late_in_a_row: dict[ShardKey, int] = {}

    def __bool__(self) -> bool:
        """Whether answers matter: somebody is suspect, or was not in time when it answered last."""
        return bool(self._until_s or self._late_in_a_row)

    @property
    def keys(self) -> frozenset[ShardKey]:
        """The suspects."""
        return frozenset(self._until_s)

    def late(self, key: ShardKey) -> None:
        """Suspect a shard until it answers."""
        self._late_in_a_row[key] = self._late_in_a_row.get(key, 0) + 1
        self._until_s[key] = math.inf

    def answered(self, key: ShardKey, in_time: bool, now_s: float) -> bool:
        """Take note of an answer to any call; return whether the shard is trusted again."""
        if in_time:
            self._late_in_a_row.pop(key, None)
            return self._until_s.pop(key, None) is not None
        if self._until_s.get(key) != math.inf:
            return False
        stays_s = pause_s(self._late_in_a_row.get(key, 0))
        self._until_s[key] = now_s + stays_s
        return stays_s == 0.0 and self.tend(now_s)

    def tend(self, now_s: float) -> bool:
        """Trust those again whose time is over; return whether there were any."""
        over = [key for key, until_s in self._until_s.items() if until_s <= now_s]
        for key in over:
            del self._until_s[key]
        return bool(over)

    def forget(self, key: ShardKey) -> bool:
        """The shard is lost, or its link: return whether it was suspect."""
        self._late_in_a_row.pop(key, None)
        return self._until_s.pop(key, None) is not None
