"""Times counted in buckets of plain integers: cheap enough for the thread that computes.

A bucket's bound is a power of two in microseconds, so that finding it is one `bit_length`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

_FIRST_BITS = 6
NUM_BOUNDS = 21
BOUNDS_S = tuple(2 ** (_FIRST_BITS + place) / 1e6 for place in range(NUM_BOUNDS))
"""Upper bounds of all buckets but the last: 64 us, 128 us, … 67 s."""

Counts = list[int]
"""The sum in microseconds, then how many fell into each bucket: `NUM_BOUNDS` + 1 of them."""


def empty_counts() -> Counts:
    """Return the counts of a histogram without values."""
    return [0] * (NUM_BOUNDS + 2)


def add_time(counts: Counts, seconds: float, times: int = 1) -> None:
    """Count a value, `times` times."""
    time_us = int(seconds * 1e6)
    counts[0] += time_us * times
    # Spelt out: `min` and `max` would be a third of the cost, and this runs for every expert call.
    place = time_us.bit_length() - _FIRST_BITS + 1
    if place < 1:
        place = 1
    elif place > NUM_BOUNDS + 1:
        place = NUM_BOUNDS + 1
    counts[place] += times


def total(counts: Sequence[int]) -> int:
    """Return how many values were counted."""
    return sum(counts[1:])


def sum_s(counts: Sequence[int]) -> float:
    """Return the sum of all values."""
    return counts[0] / 1e6


def cumulative(counts: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Yield (upper bound as Prometheus writes it, values up to it), the last one ``+Inf``."""
    so_far = 0
    for bound_s, count in zip((*BOUNDS_S, None), counts[1:], strict=True):
        so_far += count
        yield ("+Inf" if bound_s is None else f"{bound_s:g}"), so_far
