"""One choice on its way through ranks that may die: what was emitted, and how to go on elsewhere.

A plain state machine. It keeps the prompt and every emitted id, lets through each token exactly
once, and says when an attempt has to be given up. It knows no Ray, no clock and no sockets.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from enum import Enum

from trinity_serve.engine.request import FinishReason, GenerationRequest, TokenEvent

STREAM_LOST_S = 2.0
"""How long a choice waits for a lost event stream, or for events after its call returned."""
MAX_LOSSES = 8
"""A choice that lost so many ranks without a token between is failed: it is probably the reason."""
FIRST_PAUSE_S = 0.25
MAX_PAUSE_S = 2.0
"""Ranks that are gone may be offered for seconds until Serve has noticed: give it that time."""


class Verdict(Enum):
    """What to do with the running attempt."""

    WAIT = "wait"
    REPLAY = "replay"
    GIVE_UP = "give up"


class ChoiceReplay:
    """The state of one choice over all its attempts."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.finished = False
        self.refused_by: frozenset[str] = frozenset()
        """Ranks that had no room for it before any took it."""
        self._emitted_ids: list[int] = list(request.emitted_ids)
        self._broken = False
        self._losses = 0
        self._quiet_since_s: float | None = None

    def accept(self, event: TokenEvent) -> TokenEvent | None:
        """Return `event` when it is the next of the running attempt, None when it is not.

        An event of another attempt, a repeated one, or one after the end is dropped. A gap means
        that events were lost: the attempt is broken. So does an end that this choice did not ask
        for (the rank goes away).
        """
        if self.finished or self._broken or event.attempt != self.request.attempt:
            return None
        expected_index = len(self._emitted_ids)
        if event.token_id is not None and event.index < expected_index:
            return None
        if event.token_id is not None and event.index > expected_index:
            self.attempt_lost()
            return None
        if event.finish is FinishReason.CANCELLED:
            self.attempt_left()
            return None
        if event.token_id is not None:
            self._emitted_ids.append(event.token_id)
            self._losses = 0
        self.finished = event.finish is not None
        return event

    @property
    def is_taken(self) -> bool:
        """Whether a rank has taken it before the running attempt."""
        return self.request.attempt > len(self.refused_by)

    def refused(self, rank: str, ranks: Set[str]) -> bool:
        """Take note that `rank` has no room; return whether another of `ranks` is to be asked."""
        others = ranks - self.refused_by - {rank}
        if self.is_taken or not rank or rank in self.refused_by or not others:
            return False
        self.refused_by |= {rank}
        self._broken = True
        return True

    def attempt_lost(self) -> None:
        """Take note that the running attempt came to grief, perhaps because of this choice."""
        self._losses += 0 if self._broken else 1
        self._broken = True

    def attempt_left(self) -> None:
        """Take note that the running attempt is to be left for no fault of its own."""
        self._broken = True

    @property
    def pause_s(self) -> float:
        """How long to wait before the next attempt: none after a first loss, then ever longer."""
        if self._losses <= 1:
            return 0.0
        return min(FIRST_PAUSE_S * 2.0 ** (self._losses - 2), MAX_PAUSE_S)

    def quiet(self, now_s: float) -> None:
        """Take note that nothing can come: the stream is lost, or the call has returned."""
        if self._quiet_since_s is None:
            self._quiet_since_s = now_s

    def spoke(self, now_s: float) -> None:
        """Take note that something came all the same: the wait for more starts again."""
        if self._quiet_since_s is not None:
            self._quiet_since_s = now_s

    def heard(self) -> None:
        """Take note that events may come (again)."""
        self._quiet_since_s = None

    def verdict(self, now_s: float) -> Verdict:
        """Say what to do with the running attempt."""
        if self._quiet_since_s is not None and now_s - self._quiet_since_s >= STREAM_LOST_S:
            self.attempt_lost()
        if self.finished or not self._broken:
            return Verdict.WAIT
        return Verdict.GIVE_UP if self._losses >= MAX_LOSSES else Verdict.REPLAY

    def next_attempt(self) -> GenerationRequest:
        """Give up the running attempt and return the request that goes on from what was emitted."""
        self.request = replace(
            self.request,
            attempt=self.request.attempt + 1,
            emitted_ids=tuple(self._emitted_ids),
        )
        self._broken, self._quiet_since_s = False, None
        return self.request
