"""Whose rows crash shards: after a second crash each request's rows travel in a frame of their own.

A rank sees a crash as the end of a link's stream with its frame in flight. A kill from outside and
a broken link look the same, so a strike counts against a request only when

- its own frame was the only one that this rank had in flight, at any shard, and
- the shard's life could not be reached again: whoever answers once more had only lost the link.

Silence, time-outs and damaged frames are no strikes. Two strikes are two lives of shards; a struck
request waits behind all others before its next try, which parts it from whoever crashes shards of
another rank at the same moment.

N rows, B requests.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from router.copies import ShardKey
from router.plan import Int32, Int64

CRASHES_BEFORE_ISOLATION = 2
STRIKES = 2

Slots = tuple[Int64, Int64, Int64]
"""(expert_N, token_N, dest_N): single rows, and where they belong among the handle's."""


@dataclass(frozen=True, slots=True)
class RowRequests:
    """Which request of the step each row belongs to; looked at only when something fails.

    `starts_B1` are the first rows of the step's requests and the row after the last;
    `first_row` is where a micro-batch begins among the step's rows.
    """

    starts_B1: Int32
    first_row: int = 0

    def of(self, token_N: Int64) -> Int64:
        """Return the position of each row's request in the step."""
        return np.searchsorted(self.starts_B1, token_N + self.first_row, side="right") - 1

    def split(self, slots: Slots) -> list[tuple[int, Slots]]:
        """Return the slots of each request."""
        request_N = self.of(slots[1])
        return [(int(one), pick(slots, request_N == one)) for one in np.unique(request_N)]


def pick(slots: Slots, chosen_N: np.typing.NDArray[np.bool_]) -> Slots:
    """Return the chosen slots."""
    expert_N, token_N, dest_N = slots
    return expert_N[chosen_N], token_N[chosen_N], dest_N[chosen_N]


@dataclass(slots=True)
class Isolation:
    """One handle's rows that go one request per frame, one frame at a time."""

    queue: deque[tuple[int, Slots]] = field(default_factory=deque)
    in_flight: tuple[int, tuple[ShardKey, int]] | None = None
    """The request whose frame is away, and the part it is."""
    strikes: dict[int, set[ShardKey]] = field(default_factory=dict)
    """Lives of shards that ended while a request's own frame alone was there."""

    def lost(self, part: tuple[ShardKey, int], slots: Slots, ended: bool) -> bool:
        """Take back the frame that is away; False when `part` is not it."""
        if self.in_flight is None or self.in_flight[1] != part:
            return False
        request = self.in_flight[0]
        self.in_flight = None
        if ended:
            self.strikes.setdefault(request, set()).add(part[0])
        self.queue.append((request, slots))
        return True

    def answered(self, part: tuple[ShardKey, int]) -> None:
        """A part's rows have come."""
        if self.in_flight is not None and self.in_flight[1] == part:
            self.in_flight = None
