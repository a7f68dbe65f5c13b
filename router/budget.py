"""How many calls may be sent a second time: a token bucket. Pure."""

from __future__ import annotations


class HedgeBudget:
    """A share of all calls, and a burst: a slow pool must not get twice the load it is slow under.

    Each call adds `share` of a token, up to `burst`; each hedge takes one.
    """

    def __init__(self, share: float, burst: int) -> None:
        self._share = share
        self._burst = burst
        self._tokens = float(burst)
        self._num_calls = 0

    def take(self, num_calls: int) -> bool:
        """Take a token, if there is one. `num_calls` were sent so far, hedges not counted."""
        earned = self._share * (num_calls - self._num_calls)
        self._tokens = min(self._burst, self._tokens + earned)
        self._num_calls = num_calls
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
