"""When to run which calls: ranks in step share one product per layer, and nobody waits for long.

Pure: time is passed in. Every rank sends every shard a frame per layer, header only when it has no
rows, so the shard knows where each rank stands. At the first MoE layer a batch waits up to a
quarter of the rolling step time for ranks that are due, which brings ranks into step; at later
layers up to a quarter of the expert time. A rank that misses a window is out of step until its next
first layer, so that one slow or dead rank costs the others one window. One rank alone never waits.

A lane is one rank's one micro-batch: what walks through the layers in order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from cluster.wire import CallId

_WINDOW_SHARE = 0.25
_LONGEST_STEP_S = 2.0
# Waiting in vain moves a follower up to a quarter step towards its leader: a few times are enough
# for ranks of equal steps to meet. Ranks of unequal steps never do: they try every eighth step (the
# simulation in the tests: 4 to 7 % of the slower rank's steps, 21 % without this bound).
_PATIENCE = 8.0
_PATIENCE_PER_STEP = 0.125
_ROLLING = 0.2
"""Weight of the newest measurement in a rolling mean."""

Origin = TypeVar("Origin")
Lane = tuple[int, int, int]
"""(rank, incarnation, micro-batch)"""


@dataclass(slots=True)
class _LaneState:
    """Where a lane stands."""

    in_step: bool = True
    step_began_s: float = 0.0
    step_s: float = 0.0
    """Rolling time between its first layers; 0 while unknown."""
    last_step_s: float = 0.0
    """The last of them: foretells the next better than the mean while a rank waits for another."""
    group: int = 0
    """The product of its first layer: those who shared it are expected together later on."""
    patience: float = _PATIENCE
    """How often it will wait for a rank to follow that does not come."""


@dataclass(slots=True)
class Batch(Generic[Origin]):
    """Calls of one layer and micro-batch that will run together."""

    layer: int
    micro_batch: int
    opened_s: float
    lanes: set[Lane] = field(default_factory=set)
    origins: list[Origin] = field(default_factory=list)
    urgent: bool = False


class Alignment(Generic[Origin]):
    """Gathers calls; `Origin` is whatever the caller keeps of a call. Used by one thread."""

    def __init__(self) -> None:
        self._lanes: dict[Lane, _LaneState] = {}
        self._open: dict[tuple[int, int], Batch[Origin]] = {}
        self._num_groups = 0
        self._expert_s = 0.0

    def add(self, call_id: CallId, origin: Origin, now_s: float) -> None:
        """Take note of a call that has arrived."""
        lane = (call_id.rank, call_id.incarnation, call_id.micro_batch)
        state = self._lanes.get(lane)
        if state is None:
            # Whoever comes in the middle of a step is out of step until its next one.
            state = self._lanes[lane] = _LaneState(in_step=False)
        place = (call_id.layer, call_id.micro_batch)
        batch = self._open.get(place)
        if batch is None:
            batch = self._open[place] = Batch(*place, now_s)
        batch.lanes.add(lane)
        batch.origins.append(origin)
        if call_id.attempt > 0:
            batch.urgent = True
        elif call_id.layer == 0:
            self._begin_step(state, now_s)

    def _begin_step(self, state: _LaneState, now_s: float) -> None:
        if state.step_began_s:
            last_s = min(now_s - state.step_began_s, _LONGEST_STEP_S)
            state.step_s += (last_s - state.step_s) * (_ROLLING if state.step_s else 1.0)
            state.last_step_s = last_s
        state.step_began_s = now_s
        state.in_step = True

    def take(self, now_s: float) -> list[Batch[Origin]]:
        """Return the batches to run now, first opened first."""
        if not self._open:
            return []
        due = [batch for batch in self._open.values() if self._closes_at_s(batch) <= now_s]
        for batch in due:
            del self._open[batch.layer, batch.micro_batch]
            self._settle(batch)
        return due

    def next_deadline_s(self) -> float | None:
        """Return when `take` has something to return even if nothing arrives; None for never."""
        if not self._open:
            return None
        return min(self._closes_at_s(batch) for batch in self._open.values())

    def ran(self, seconds: float) -> None:
        """Take note of how long a product took."""
        self._expert_s += (seconds - self._expert_s) * (_ROLLING if self._expert_s else 1.0)

    def forget(self, rank: int, incarnation: int) -> None:
        """A rank is gone: nobody waits for it any more, and it waits for nobody."""
        gone = {lane for lane in self._lanes if lane[:2] == (rank, incarnation)}
        for lane in gone:
            del self._lanes[lane]
        for place, batch in list(self._open.items()):
            batch.lanes -= gone
            if not batch.lanes:
                del self._open[place]

    def _closes_at_s(self, batch: Batch[Origin]) -> float:
        if len(self._lanes) == 1 or batch.urgent:
            return batch.opened_s
        window_s = self._window_s(batch)
        due, followed = self._awaited(batch, window_s)
        return batch.opened_s + window_s if due or followed else batch.opened_s

    def _window_s(self, batch: Batch[Origin]) -> float:
        if batch.layer:
            return _WINDOW_SHARE * self._expert_s
        return _WINDOW_SHARE * min(self._lanes[lane].step_s for lane in batch.lanes)

    def _awaited(self, batch: Batch[Origin], window_s: float) -> tuple[list[_LaneState], bool]:
        """Return the lanes that are expected within the window, and whether one is followed."""
        others = [
            (lane, state)
            for lane, state in self._lanes.items()
            if state.in_step and lane[2] == batch.micro_batch and lane not in batch.lanes
        ]
        if window_s == 0.0 or not others:
            return [], False
        if batch.layer:
            groups = {s.group for s in map(self._lanes.__getitem__, batch.lanes) if s.in_step}
            return [state for _, state in others if state.group in groups], False
        closes_at_s = batch.opened_s + window_s
        due = [
            state for _, state in others if state.step_began_s + state.last_step_s <= closes_at_s
        ]
        # Without one to follow, two ranks half a step apart would never meet.
        leader = min(batch.lanes)
        followed = min(lane for lane, _ in others) < leader
        return due, followed and self._lanes[leader].patience >= 1.0

    def _settle(self, batch: Batch[Origin]) -> None:
        """Note who shared this batch and who missed it."""
        due, followed = self._awaited(batch, self._window_s(batch))
        for state in due:
            state.in_step = False
        if batch.layer:
            return
        self._num_groups += 1
        for lane in batch.lanes:
            state = self._lanes[lane]
            state.group = self._num_groups
            waited_in_vain = followed and len(batch.lanes) == 1
            patience = state.patience + (-1.0 if waited_in_vain else _PATIENCE_PER_STEP)
            state.patience = min(_PATIENCE, patience)
