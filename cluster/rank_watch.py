"""Who asks the pool for news: attention ranks with their load, and ingresses. Pure."""

from __future__ import annotations

from cluster.pool_messages import RankLoad, RankSight

SUBSCRIPTION_S = 15.0
RANK_SILENT_S = 5.0
"""A rank that has asked for no news for so long is gone; it asks every two seconds."""


class RankWatch:
    """When each was heard last. Seconds on one monotonic clock; not for several threads."""

    def __init__(self) -> None:
        self._ranks: dict[str, tuple[float, RankLoad]] = {}
        self._subscribers: dict[str, float] = {}

    def seen(self, sight: RankSight, now_s: float) -> None:
        """A rank asks for news."""
        self._ranks[sight.rank] = (now_s, sight.load)

    def loads(self, now_s: float) -> list[RankLoad]:
        """Return the load of every rank that lives."""
        self._ranks = {
            rank: seen for rank, seen in self._ranks.items() if seen[0] + RANK_SILENT_S > now_s
        }
        return [load for _, load in self._ranks.values()]

    def subscribed(self, address: str, now_s: float) -> None:
        """An ingress takes events at this address."""
        self._subscribers[address] = now_s

    def subscribers(self, now_s: float) -> tuple[str, ...]:
        """Return where the ingresses that live take events, in order."""
        oldest_s = now_s - SUBSCRIPTION_S
        self._subscribers = {
            name: at_s for name, at_s in self._subscribers.items() if at_s >= oldest_s
        }
        return tuple(sorted(self._subscribers))
