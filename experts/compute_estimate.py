"""How long the next product will take, so that a shard can say that it will be silent."""

from __future__ import annotations

_ANNOUNCE_FROM_S = 0.1
"""Expected to be shorter, a product needs no word: ranks wait for 1.2 s, and one that takes twelve
times what it took before is what `dead` is meant for."""
_SAFETY = 4.0
_LEAST_ANNOUNCED_S = 2.0
_DECAY = 0.9
_MOST_ANNOUNCED_S = 10.0
_UNMEASURED_ROW_S = 0.002
_LEAST_ROWS = 64
"""With fewer rows the time goes to reading weights and says nothing about long products."""


class ComputeEstimate:
    """The slowest recent time per row, forgotten slowly. Pure."""

    def __init__(self) -> None:
        self._row_s = _UNMEASURED_ROW_S

    def ran(self, num_rows: int, seconds: float) -> None:
        """Take note of a product."""
        if num_rows >= _LEAST_ROWS:
            self._row_s = max(seconds / num_rows, self._row_s * _DECAY)

    def announce_s(self, num_rows: int) -> float:
        """Return for how long to be called busy, 0 when the product is short."""
        expected_s = num_rows * self._row_s
        if expected_s < _ANNOUNCE_FROM_S:
            return 0.0
        return min(_MOST_ANNOUNCED_S, max(_LEAST_ANNOUNCED_S, _SAFETY * expected_s))
