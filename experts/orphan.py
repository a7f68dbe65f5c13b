"""When a shard is alone in the world: neither a pool nor a rank has been heard for a while."""

from __future__ import annotations


class OrphanWatch:
    """Keeps the latest sign of anyone. Times in seconds on one monotonic clock."""

    def __init__(self, grace_s: float, now_s: float) -> None:
        self._grace_s = grace_s
        self._heard_at_s = now_s

    def heard(self, at_s: float) -> None:
        """Take note of a sign; an older one than known changes nothing."""
        self._heard_at_s = max(self._heard_at_s, at_s)

    def alone(self, now_s: float) -> bool:
        """Return whether the last sign is older than the grace time."""
        return now_s - self._heard_at_s > self._grace_s
