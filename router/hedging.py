"""Asks a second copy when a call is late, and asks the late shard last until it has answered.

A call is late when it took three times as long as 99 of 100 such calls of its shard did, and at
least 50 ms (`router.pace`). Its rows are then asked of other copies too, within a budget; whoever
answers first gives them (`router.race`). The call itself stays: late is not lost, nothing is
charged to the shard, and its answer ends the suspicion whenever it comes.

All of this but taking note of round trips happens only while something is late.
"""

from __future__ import annotations

import math

from cluster.errors import LinkLostError
from cluster.metrics import Metric
from cluster.wire import CallId
from router import race
from router.budget import HedgeBudget
from router.config import DispatchConfig
from router.copies import ShardKey
from router.handle import Handle, Part
from router.links import ShardLinks
from router.pace import Pace
from router.sender import CallSender
from router.suspects import Suspects

BURST = 10
"""Hedges that may come at once: one stalled shard has a few layers in flight at most."""


class Hedging:
    """One rank's view of who is slow. Used by the engine thread."""

    def __init__(self, links: ShardLinks, sender: CallSender, config: DispatchConfig) -> None:
        self._links = links
        self._sender = sender
        self._config = config
        self._pace = Pace(config.hedge_factor, config.hedge_floor_s)
        self._budget = HedgeBudget(config.hedge_share, BURST)
        self._suspects = Suspects()
        self._away: dict[tuple[ShardKey, CallId], float] = {}
        """Calls that were asked twice and have not been answered yet, won or lost; when sent."""
        self._num_hedge_calls = 0
        self._on = False

    @property
    def has_calls_away(self) -> bool:
        """Whether some shard may compute rows that are awaited from another too."""
        return bool(self._away)

    def placement_changed(self) -> None:
        """Hedge where there are copies and a budget."""
        placement = self._links.placement
        copies = placement.copies_LEC.shape[2] if placement is not None else 1
        self._on = copies > 1 and self._config.hedge_share > 0.0
        self._sender.late_after_s = self._config.hedge_floor_s if self._on else math.inf

    def took(self, shard: ShardKey, part: Part, seconds: float) -> None:
        """Take note of the round trip of an awaited answer.

        That of a call that others overtook is not remembered: it would make slowness the rule that
        late is measured by. When all shards are slow, late calls that find no budget for a hedge
        tell how slow.
        """
        if self._on:
            self._pace.note(shard, part.rows.num_rows, seconds)

    def answered(self, shard: ShardKey, call: CallId) -> None:
        """Take note of any answer: of an error too, and of one that nobody awaits any more."""
        if not self._away and not self._suspects:
            return
        self._away.pop((shard, call), None)
        if self._suspects.answered(shard, self._links.clock()):
            self._links.copies.ask_last(self._suspects.keys)

    def lost(self, shard: ShardKey) -> None:
        """Forget a shard whose link is gone."""
        self._pace.forget(shard)
        for key in [key for key in self._away if key[0] == shard]:
            del self._away[key]
        if self._suspects.forget(shard):
            self._links.copies.ask_last(self._suspects.keys)

    def tend(self) -> None:
        """Trust suspects again whose time is over; give up those that never answered a call."""
        if not self._away and not self._suspects:
            return
        now_s, limit_s = self._links.clock(), self._config.call_timeout_s
        if self._suspects.tend(now_s):
            self._links.copies.ask_last(self._suspects.keys)
        for shard in {key[0] for key, sent_s in self._away.items() if now_s - sent_s > limit_s}:
            slow = LinkLostError(f"shard {shard[0]}", f"no reply to a call for {limit_s:g} s")
            self._links.give_up(shard, slow)

    def look(self, handle: Handle) -> None:
        """Ask other copies for what is late, and settle when to look again."""
        now_s = self._links.clock()
        handle.late_at_s = math.inf
        # A request that may crash shards travels alone, and to one shard at a time.
        if handle.isolation is not None:
            return
        for (shard, attempt), part in list(handle.parts.items()):
            if part.raced:
                continue
            due_s = part.sent_at_s + self._pace.limit_s(shard, part.rows.num_rows)
            if now_s >= due_s and not self._hedge(handle, shard, attempt, part):
                due_s = now_s + self._config.hedge_floor_s
            if now_s < due_s:
                handle.late_at_s = min(handle.late_at_s, due_s)

    def _hedge(self, handle: Handle, shard: ShardKey, attempt: int, part: Part) -> bool:
        """Ask others for a part's rows; False when there is nobody to ask now."""
        slots = race.unanswered(handle, part.slots(), without=part)
        owner_E = self._links.copies.elsewhere(handle.key[2], shard)
        if (owner_E[slots[0]] < 0).any():
            return False
        part.raced = True
        if len(slots[0]) == 0:
            return True
        metrics = self._sender.metrics
        if not self._budget.take(metrics[Metric.DISPATCH_CALLS] - self._num_hedge_calls):
            metrics.inc(Metric.HEDGES_REFUSED)
            return True
        metrics.inc(Metric.HEDGED_CALLS)
        race.begin(handle)
        self._suspects.late(shard, self._links.clock())
        self._links.copies.ask_last(self._suspects.keys)
        self._sender.send_slots_to(handle, slots, owner_E)
        for (other, number), sent in handle.parts.items():
            if number == handle.attempts:
                sent.raced = True
                self._num_hedge_calls += 1
                self._away[other, self._sender.call_id(handle, number)] = sent.sent_at_s
        self._away[shard, self._sender.call_id(handle, attempt)] = part.sent_at_s
        return True

    def overtaken(self, by_attempt: int, done: list[tuple[race.PartKey, Part]]) -> None:
        """Take note of parts whose rows another attempt has brought: a later one was a hedge."""
        for (_, attempt), _part in done:
            if attempt < by_attempt:
                self._sender.metrics.inc(Metric.HEDGES_WON)
