"""How many prompt rows may join a step of decodes, so that the step stays within a bound.

Learned from the steps before: what a prompt row adds is a fixed part and one in proportion to its
context, which attention reads. Only says when rows are computed: chunks of any size give the same
bits. Pure: knows no clock.
"""

from __future__ import annotations

LEAST_ROWS = 32
"""A prompt gets on by at least so many rows per step, whatever they cost."""
PROBE_ROWS = 64
"""Rows of the first mixed step, whose cost nobody knows."""

_KEPT = 0.7
"""Weight of a measurement after one more. Costs per row change with the rows of a step, since its
experts are read once for all of them, so the newest steps count most."""
_DECODE_KEPT = 0.9
_AIM = 0.8
"""Share of the bound that is planned: steps scatter, and are to stay below it."""
_EVEN_CONTEXT = 8192.0
"""Context at which a row takes twice the time of one at the start: the first guess, which weighs
as much as one step whose context is `_GUESS_CONTEXT`."""
_GUESS_CONTEXT = 2048.0


class PrefillPace:
    """Fits seconds per row = fixed + slope x context to mixed steps, the newest first.

    `bound_s` is what a step with decodes and prompt rows may take, or twice what the decodes alone
    take if that is more: a slow model's prompts shall get on too.
    """

    def __init__(self, bound_s: float) -> None:
        self._bound_s = bound_s
        self._decode_s = 0.0
        self._weight = self._context = self._context2 = self._cost = self._cost_context = 0.0

    def decoded(self, took_s: float) -> None:
        """Take note of a step of decodes alone."""
        kept = _DECODE_KEPT if self._decode_s else 0.0
        self._decode_s = kept * self._decode_s + (1.0 - kept) * took_s

    def mixed(self, num_rows: int, context: float, took_s: float) -> None:
        """Take note of a step with so many prompt rows; `context` is their mean position."""
        row_s = max(0.0, took_s - self._decode_s) / num_rows
        self._weight = _KEPT * self._weight + 1.0
        self._context = _KEPT * self._context + context
        self._context2 = _KEPT * self._context2 + context * context
        self._cost = _KEPT * self._cost + row_s
        self._cost_context = _KEPT * self._cost_context + row_s * context

    def budget_s(self) -> float:
        """Return the time that prompt rows may add to the next step."""
        return max(_AIM * self._bound_s - self._decode_s, self._decode_s)

    def rows_within(self, seconds: float, context: int) -> int:
        """Return how many rows from position `context` on fit in so much time."""
        row_s = self.row_s(context)
        if row_s is None:
            return PROBE_ROWS
        return int(seconds / row_s) if row_s > 0.0 else 1 << 30

    def row_s(self, context: float) -> float | None:
        """Return what a row at this context adds to a step; None before the first measurement."""
        if not self._weight:
            return None
        guess = _GUESS_CONTEXT * _GUESS_CONTEXT
        # Least squares of two parameters, and slope = fixed / _EVEN_CONTEXT as one more equation.
        fixed2 = self._weight + guess / _EVEN_CONTEXT**2
        both = self._context - guess / _EVEN_CONTEXT
        slope2 = self._context2 + guess
        determinant = fixed2 * slope2 - both * both
        fixed = (self._cost * slope2 - self._cost_context * both) / determinant
        slope = (self._cost_context * fixed2 - self._cost * both) / determinant
        if slope < 0.0:
            return self._cost / self._weight
        return max(0.0, fixed) + slope * context
