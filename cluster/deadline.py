"""A deadline is made once, at the border, and passed down; a retry spends from it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from cluster.errors import DeadlineExceededError


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point on the monotonic clock, with the budget it was made from."""

    at_s: float
    budget_s: float

    @classmethod
    def after(cls, budget_s: float, now_s: float | None = None) -> Deadline:
        """Return the deadline `budget_s` seconds from `now_s` (default: the monotonic clock)."""
        start_s = time.monotonic() if now_s is None else now_s
        return cls(start_s + budget_s, budget_s)

    def remaining_s(self, now_s: float | None = None) -> float:
        """Return the seconds left, never below zero."""
        now_s = time.monotonic() if now_s is None else now_s
        return max(0.0, self.at_s - now_s)

    def expired(self, now_s: float | None = None) -> bool:
        """Return whether no time is left."""
        return self.remaining_s(now_s) <= 0.0

    def check(self, what: str, now_s: float | None = None) -> None:
        """Raise `DeadlineExceededError` naming `what` when no time is left."""
        if self.expired(now_s):
            raise DeadlineExceededError(what, self.budget_s)
