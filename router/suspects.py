"""Shards whose answer was late: who is asked last, and for how long. Pure: time is passed in.

A suspect is trusted again with its next answer. One that is late again and again is not: each time
it is asked first costs a client the wait until its call counts as late, so that from the second
time on it stays suspect for a while after its answer, twice as long each time. Answers that come in
time do not count in its favour, time does: a process that gets a tenth of a core answers every
other call in time.
"""

from __future__ import annotations

import math

from router.copies import ShardKey

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 16.0
FORGIVEN_AFTER_S = 10.0
"""A shard that was trusted for so long without being late begins anew."""


def pause_s(times: int) -> float:
    """Return how long a shard that was late so often stays suspect after it has answered."""
    if times < 2:
        return 0.0
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(times - 2, 16))


class Suspects:
    """The shards that one rank asks last."""

    def __init__(self) -> None:
        self._until_s: dict[ShardKey, float] = {}
        """Infinity until the shard answers."""
        self._late: dict[ShardKey, tuple[int, float]] = {}
        """How often lately, and until when that counts."""

    def __bool__(self) -> bool:
        """Whether somebody is suspect."""
        return bool(self._until_s)

    @property
    def keys(self) -> frozenset[ShardKey]:
        """The suspects."""
        return frozenset(self._until_s)

    def late(self, key: ShardKey, now_s: float) -> None:
        """Suspect a shard until it answers; calls that are late meanwhile count once."""
        if self._until_s.get(key) == math.inf:
            return
        times, counts_until_s = self._late.get(key, (0, math.inf))
        times = times + 1 if now_s <= counts_until_s else 1
        self._late[key] = (times, math.inf)
        self._until_s[key] = math.inf

    def answered(self, key: ShardKey, now_s: float) -> bool:
        """Take note of an answer to any call; return whether the shard is trusted again."""
        if self._until_s.get(key) != math.inf:
            return False
        times, _ = self._late[key]
        self._until_s[key] = now_s + pause_s(times)
        self._late[key] = (times, self._until_s[key] + FORGIVEN_AFTER_S)
        return self.tend(now_s)

    def tend(self, now_s: float) -> bool:
        """Trust those again whose time is over; return whether there were any."""
        over = [key for key, until_s in self._until_s.items() if until_s <= now_s]
        for key in over:
            del self._until_s[key]
        return bool(over)

    def forget(self, key: ShardKey) -> bool:
        """The shard is lost, or its link: return whether it was suspect."""
        self._late.pop(key, None)
        return self._until_s.pop(key, None) is not None
