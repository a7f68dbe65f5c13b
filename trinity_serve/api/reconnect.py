"""When a rank tries to reach an ingress again, and when it gives it up. Time is passed in."""

from __future__ import annotations

FIRST_PAUSE_S = 0.2
MAX_PAUSE_S = 1.0
STOOD_AFTER_S = 1.5
"""A stream that lasted so long was no refusal: what comes next is a new break, not a retry."""
LOST_AFTER_S = 4.0


class ReconnectPace:
    """Grows the pause while streams are refused, at once or soon after they were connected.

    A stream that had stood is opened again at once; after each one that did not stand the pause
    doubles, up to `MAX_PAUSE_S`.
    """

    def __init__(self, now_s: float) -> None:
        self._stood_at_s = now_s
        """When a stream last stood; the start counts as that."""
        self._num_refusals = 0

    def ended(self, lasted_s: float, now_s: float) -> float:
        """Take note of a stream's end and return how long to wait before the next attempt.

        `lasted_s` is 0 where none came about.
        """
        if lasted_s >= STOOD_AFTER_S:
            self._stood_at_s, self._num_refusals = now_s, 0
            return 0.0
        self._num_refusals += 1
        return min(FIRST_PAUSE_S * 2.0 ** (self._num_refusals - 1), MAX_PAUSE_S)

    def is_lost(self, now_s: float) -> bool:
        """Return whether no stream has stood for so long that the ingress counts as gone."""
        return now_s - self._stood_at_s >= LOST_AFTER_S
