"""How long things may take, and from which size on rows go by a group."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds."""

    least_rows_bytes: int = 2**16
    """Rows of fewer bytes stay on the base: below, a second message costs more than it saves. The
    rank's counts for both ends."""
    exchange_s: float = 0.5
    """Rows come at most so long after their head. Less than a silent peer has before it counts as
    dead (1.2 s): what is behind them on the base, signs of life too, waits for them."""
    bytes_per_s: float = 1e8
    """Large rows have so much longer."""
    build_s: float = 5.0
    """For finding each other, for connecting, and for the first exchange, each."""
    first_pause_s: float = 1.0
    """From a dropped generation to the offer of the next; doubles while generations fail."""
    longest_pause_s: float = 60.0
    proven_after_s: float = 30.0
    """A generation that lived for so long does not count as one that failed."""

    def exchange_limit_s(self, rows_bytes: int) -> float:
        """Return how long rows of this size may take."""
        return self.exchange_s + rows_bytes / self.bytes_per_s
