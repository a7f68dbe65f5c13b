"""Sends a layer's rows to expert shards and collects their weighted sum, whatever fails meanwhile.

An expert call is a pure function, so rows whose shard is lost are planned again onto another copy,
or wait for the pool to bring the expert back, and rows whose shard is late are asked of a second
copy; no attempt can change a bit of the result.

T tokens, K slots per token, N = T*K rows, D hidden. Used by one thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cluster.errors import NonFiniteRowsError, NotReadyError, PoisonedRequestError
from cluster.metrics import Metric, Metrics
from cluster.placement import Placement
from router.alone import count_non_finite, take_out_non_finite
from router.config import DispatchConfig
from router.handle import Handle, HandleKey
from router.hedging import Hedging
from router.in_flight import InFlight
from router.isolation import RowRequests
from router.links import ShardLinks
from router.plan import Int32, Int64, Plan, plan_rows
from router.sender import CallSender, RankIdentity

Planner = Callable[[Int64, Int32], Plan]

_STALLED_WAIT_S = 0.05
_WAIT_S = 0.5


class Dispatcher:
    """One rank's way to the experts."""

    def __init__(
        self,
        identity: RankIdentity,
        links: ShardLinks,
        config: DispatchConfig,
        metrics: Metrics,
        planner: Planner = plan_rows,
    ) -> None:
        self._sender = CallSender(identity, links, config, metrics)
        self._hedging = Hedging(links, self._sender, config)
        self._in_flight = InFlight(links, self._sender, self._hedging, config)
        self._plan_rows = planner
        self._links = links
        self._config = config
        self._metrics = metrics
        self._step = 0
        self._published: deque[Placement] = deque()
        self.last_sign_at_s = links.clock()
        """When this thread last sent a layer or looked for replies, in seconds of the links' clock;
        read by any thread. Whether shards can answer is told by `missing`."""
        self.observe: Callable[[int, Tensor], None] | None = None
        """Told (MoE layer, topk_ids_TK) of every dispatch; for `routed_experts` and tests."""

    @property
    def num_open(self) -> int:
        """Layers whose rows are still away."""
        return len(self._in_flight)

    def publish(self, placement: Placement) -> None:
        """Hand over a newer placement; thread-safe. Taken at the next step, or while stalled."""
        self._published.append(placement)
        self._links.wake()

    def begin_step(self) -> None:
        """Start a forward pass under the newest placement, with nothing in flight.

        Before the first placement it blocks, then raises `NotReadyError` after the grace time.
        """
        self._step += 1
        self.last_sign_at_s = self._links.clock()
        self._in_flight.clear()
        self._take_published()
        self._hedging.tend()
        if self._links.placement is None:
            self._await_placement()

    def _await_placement(self) -> None:
        start_s = self._links.clock()
        while self._links.placement is None:
            if self._links.clock() - start_s > self._config.coverage_grace_s:
                raise NotReadyError("no placement has been published yet")
            self.wait(_STALLED_WAIT_S)

    def wait(self, timeout_s: float) -> None:
        """Idle: answer pings, mend links, take placements, until the timeout or `wake`."""
        # A step that ended with an error may have left rows in flight that nobody wants any more.
        self._in_flight.clear()
        self._take_published()
        for shard, item in self._links.wait(timeout_s):
            self._in_flight.take(shard, item)
        self._hedging.tend()

    def wake(self) -> None:
        """End `wait` early; thread-safe."""
        self._links.wake()

    def missing(self) -> list[str]:
        """Return why some expert cannot be reached now, one line each; thread-safe.

        Empty when all can: a lost shard whose experts have living copies is no reason.
        """
        placement = self._links.placement
        if placement is None:
            return ["no placement has been published yet"]
        if self._links.covered():
            return []
        if not placement.covered:
            return ["the placement does not cover every expert", *self._links.missing()]
        return self._links.missing()

    def close(self) -> None:
        """Close every link."""
        self._in_flight.clear()
        self._links.close()

    def _take_published(self) -> None:
        if self._published:
            taken = [self._published.popleft() for _ in range(len(self._published))]
            self._links.apply(max(taken, key=lambda placement: placement.version))
            self._hedging.placement_changed()

    def dispatch(
        self,
        moe_layer: int,
        hidden_TD: Tensor,
        topk_ids_TK: Int64,
        micro_batch: int = 0,
        requests: RowRequests | None = None,
    ) -> Handle:
        """Send each shard its rows; returns at once.

        Args:
            moe_layer: counted over MoE layers from 0.
            hidden_TD: the layer's input rows, compute dtype; not to be written until `collect`
                returns.
            topk_ids_TK: chosen experts.
            micro_batch: tells apart what is in flight for the same layer.
            requests: whose rows these are, so that a request which crashes shards fails alone.
        """
        self.last_sign_at_s = self._links.clock()
        if self.observe is not None:
            self.observe(moe_layer, torch.from_numpy(topk_ids_TK))
        owner_E = self._links.copies.spread(moe_layer, topk_ids_TK)
        key = (self._step, micro_batch, moe_layer)
        if (owner_E[topk_ids_TK] < 0).any():
            handle = self._dispatch_uncovered(key, hidden_TD, topk_ids_TK)
        else:
            plan = self._plan_rows(topk_ids_TK, owner_E)
            handle = Handle(key, hidden_TD, topk_ids_TK, plan.row_of_slot)
            self._in_flight.add(handle)
            self._sender.send_plan(handle, plan)
        handle.requests = requests
        return handle

    def _dispatch_uncovered(self, key: HandleKey, hidden_TD: Tensor, topk_ids_TK: Int64) -> Handle:
        """The slow way, slot by slot, for when some expert has no living shard."""
        num_tokens, top_k = topk_ids_TK.shape
        slots_N = np.arange(num_tokens * top_k)
        row_of_slot_TK = slots_N.reshape(num_tokens, top_k)
        handle = Handle(key, hidden_TD, topk_ids_TK, row_of_slot_TK)
        self._in_flight.add(handle)
        self._sender.send_slots(handle, handle.every_slot())
        return handle

    def collect(self, handle: Handle) -> tuple[Tensor, Int64]:
        """Wait for every row of `handle`; return (rows_ND, row_of_slot_TK).

        Rows of lost shards are sent elsewhere meanwhile. Raises `CoverageLostError` when an expert
        has had no living shard for the grace time; the last loss when attempts failed for so long
        at living shards; `ShardFailedError` at once when no other attempt could end otherwise;
        `PoisonedRequestError` for a request whose own rows crash shards.
        """
        began_s = self._links.clock()
        while handle.incomplete:
            for shard, item in self._links.wait(self._patience_s(handle)):
                self._in_flight.take(shard, item)
            self.last_sign_at_s = self._links.clock()
            # Also while rows are merely late: the placement may say that their shard is gone.
            self._take_published()
            self._in_flight.check_times(handle)
            if self.last_sign_at_s >= handle.late_at_s:
                self._hedging.look(handle)
            if handle.uncovered:
                self._in_flight.retry_uncovered(handle)
            if handle.isolation is not None:
                self._in_flight.send_alone(handle)
        self._metrics.times.waited(handle.key[2], self._links.clock() - began_s)
        # Kept open it would pin the rows of every layer until the step ends.
        self._in_flight.remove(handle)
        assert handle.rows_ND is not None
        return handle.rows_ND, handle.row_of_slot_TK

    def _patience_s(self, handle: Handle) -> float:
        """Return how long to wait for rows before something else is to be done for them."""
        longest_s = _WAIT_S if handle.parts and not handle.uncovered else _STALLED_WAIT_S
        return min(longest_s, max(0.0, handle.late_at_s - self._links.clock()))

    def ask_again(self, handle: Handle) -> None:
        """Fetch what is not finite once more: a reply may have been damaged.

        The second copy is asked where there are two. Raises `PoisonedRequestError` for requests
        whose rows were not finite twice; `NonFiniteRowsError` when whose they are is not known.
        """
        self._metrics.inc(Metric.NON_FINITE_REPLIES)
        if twice := count_non_finite(handle):
            self._in_flight.clear()
            if twice[0] < 0:
                raise NonFiniteRowsError(handle.key[2])
            problem = "experts gave NaN or infinity for its rows twice"
            raise PoisonedRequestError(twice, handle.key[2], problem)
        slots = take_out_non_finite(handle)
        handle.filled_N = None
        self._in_flight.add(handle)
        self._sender.send_slots_to(handle, slots, self._links.copies.second(handle.key[2]))
