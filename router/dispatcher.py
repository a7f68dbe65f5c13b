"""Sends a layer's rows to expert shards and collects their weighted sum, whatever fails meanwhile.

An expert call is a pure function, so rows whose shard is lost are planned again onto another copy,
or wait for the pool to bring the expert back; no attempt can change a bit of the result. A reply is
matched by the identity of its call, so an answer to a given-up attempt is dropped.

T tokens, K slots per token, N = T*K rows, D hidden. Used by one thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cluster.errors import (
    CoverageLostError,
    ExpertNotHeldError,
    FrameTooLargeError,
    LinkLostError,
    MalformedFrameError,
    NonFiniteRowsError,
    NotReadyError,
    PoisonedRequestError,
    ShardFailedError,
    TrinityError,
)
from cluster.metrics import Metric, Metrics
from cluster.placement import Placement
from cluster.wire import CallError, CallId, ExpertReply, Frame
from router.alone import count_non_finite, send_alone, take_out_non_finite
from router.config import DispatchConfig
from router.handle import Handle, HandleKey
from router.isolation import CRASHES_BEFORE_ISOLATION, Isolation, RowRequests
from router.links import ShardKey, ShardLinks
from router.plan import Int32, Int64, Plan, plan_rows
from router.sender import CallSender, RankIdentity

Planner = Callable[[Int64, Int32], Plan]

_HOPELESS_CODES = frozenset({FrameTooLargeError.code, MalformedFrameError.code})
"""What a shard says of a call that no shard could take: asking again would change nothing."""
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
        self._identity = identity
        self._sender = CallSender(identity, links, config, metrics)
        self._plan_rows = planner
        self._links = links
        self._config = config
        self._metrics = metrics
        self._step = 0
        self._open: dict[HandleKey, Handle] = {}
        self._published: deque[Placement] = deque()
        self.last_sign_at_s = links.clock()
        """When this thread last sent a layer or looked for replies, in seconds of the links' clock;
        read by any thread. Whether shards can answer is told by `missing`."""
        self.observe: Callable[[int, Tensor], None] | None = None
        """Told (MoE layer, topk_ids_TK) of every dispatch; for `routed_experts` and tests."""

    @property
    def num_open(self) -> int:
        """Layers whose rows are still away."""
        return len(self._open)

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
        self._open.clear()
        self._take_published()
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
        self._open.clear()
        self._take_published()
        for shard, item in self._links.wait(timeout_s):
            self._on_item(shard, item)

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
        self._open.clear()
        self._links.close()

    def _take_published(self) -> None:
        if self._published:
            taken = [self._published.popleft() for _ in range(len(self._published))]
            self._links.apply(max(taken, key=lambda placement: placement.version))

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
        owner_E = self._links.owners(moe_layer)
        key = (self._step, micro_batch, moe_layer)
        if (owner_E[topk_ids_TK] < 0).any():
            handle = self._dispatch_uncovered(key, hidden_TD, topk_ids_TK)
        else:
            plan = self._plan_rows(topk_ids_TK, owner_E)
            handle = Handle(key, hidden_TD, topk_ids_TK, plan.row_of_slot)
            self._open[key] = handle
            self._sender.send_plan(handle, plan)
        handle.requests = requests
        return handle

    def _dispatch_uncovered(self, key: HandleKey, hidden_TD: Tensor, topk_ids_TK: Int64) -> Handle:
        """The slow way, slot by slot, for when some expert has no living shard."""
        num_tokens, top_k = topk_ids_TK.shape
        slots_N = np.arange(num_tokens * top_k)
        row_of_slot_TK = slots_N.reshape(num_tokens, top_k)
        handle = Handle(key, hidden_TD, topk_ids_TK, row_of_slot_TK)
        self._open[key] = handle
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
            timeout_s = _WAIT_S if handle.parts and not handle.uncovered else _STALLED_WAIT_S
            for shard, item in self._links.wait(timeout_s):
                self._on_item(shard, item)
            self.last_sign_at_s = self._links.clock()
            # Also while rows are merely late: the placement may say that their shard is gone.
            self._take_published()
            self._check_times(handle)
            if handle.uncovered:
                self._retry_uncovered(handle)
            if handle.isolation is not None:
                self._send_alone(handle)
        self._metrics.times.waited(handle.key[2], self._links.clock() - began_s)
        # Kept open it would pin the rows of every layer until the step ends.
        self._open.pop(handle.key, None)
        assert handle.rows_ND is not None
        return handle.rows_ND, handle.row_of_slot_TK

    def _on_item(self, shard: ShardKey, item: Frame | TrinityError) -> None:
        if isinstance(item, ExpertReply):
            self._on_reply(shard, item)
        elif isinstance(item, CallError):
            self._on_call_error(shard, item)
        elif isinstance(item, TrinityError):
            self._on_lost(shard, item)

    def _on_reply(self, shard: ShardKey, reply: ExpertReply) -> None:
        call = reply.call_id
        handle = self._awaiting(shard, call)
        if handle is None:
            return
        part = handle.parts[shard, call.attempt]
        num_rows, hidden_size = part.rows.num_rows, handle.hidden_TD.shape[1]
        rows_ND = reply.rows_ND
        if rows_ND.shape != (num_rows, hidden_size) or rows_ND.dtype != handle.hidden_TD.dtype:
            found = f"{tuple(rows_ND.shape)} {rows_ND.dtype}"
            wrong = f"rows {found}, not {(num_rows, hidden_size)} {handle.hidden_TD.dtype}"
            self._links.give_up(shard, ShardFailedError(shard[0], wrong))
            return
        del handle.parts[shard, call.attempt]
        asked, told_us = (num_rows, len(part.rows.expert_ids_G)), (reply.queue_us, reply.compute_us)
        self._metrics.times.answered(shard[0], asked, self._links.clock() - part.sent_at_s, told_us)
        handle.progressed()
        if handle.isolation is not None:
            handle.isolation.answered((shard, call.attempt))
        if num_rows == handle.row_of_slot_TK.size and isinstance(part.dest, slice):
            handle.rows_ND = rows_ND
            return
        if handle.rows_ND is None:
            handle.rows_ND = handle.hidden_TD.new_empty((handle.row_of_slot_TK.size, hidden_size))
        dest = part.dest if isinstance(part.dest, slice) else torch.from_numpy(part.dest)
        handle.rows_ND[dest] = rows_ND

    def _awaiting(self, shard: ShardKey, call: CallId) -> Handle | None:
        """Return the handle that waits for exactly this call; else count it as late."""
        handle = self._open.get((call.step, call.micro_batch, call.layer))
        ours = (call.rank, call.incarnation) == (self._identity.rank, self._identity.incarnation)
        if handle is not None and ours and (shard, call.attempt) in handle.parts:
            return handle
        self._metrics.inc(Metric.LATE_REPLIES)
        return None

    def _on_call_error(self, shard: ShardKey, error: CallError) -> None:
        handle = self._awaiting(shard, error.call_id)
        if handle is None:
            return
        failed = ShardFailedError(shard[0], f"{error.code}: {error.message}")
        if error.code in _HOPELESS_CODES:
            self._open.clear()
            raise failed
        if error.code == ExpertNotHeldError.code:
            self._on_not_held(shard, handle, error.call_id.attempt, failed)
            return
        # Whatever the reason, this shard cannot serve what the placement says it does.
        self._links.give_up(shard, failed)

    def _on_lost(self, shard: ShardKey, error: TrinityError) -> None:
        self._metrics.inc(Metric.SHARDS_LOST)
        for handle in list(self._open.values()):
            lost = [key for key in handle.parts if key[0] == shard]
            if not lost:
                continue
            handle.last_loss = error
            ended = self._links.stream_ended(shard)
            handle.num_crashes += ended
            for key in lost:
                self._metrics.inc(Metric.DISPATCH_RETRIES)
                self._resend(handle, key, ended)
            self._check_grace(handle)

    def _resend(self, handle: Handle, key: tuple[ShardKey, int], ended: bool) -> None:
        """Ask elsewhere for a lost part; one request per frame once crashes have come twice."""
        slots = handle.parts.pop(key).slots()
        if handle.requests is None or handle.num_crashes < CRASHES_BEFORE_ISOLATION:
            self._sender.send_slots(handle, slots)
            return
        if handle.isolation is None:
            handle.isolation = Isolation()
        if not handle.isolation.lost(key, slots, ended):
            handle.isolation.queue.extend(handle.requests.split(slots))

    def _send_alone(self, handle: Handle) -> None:
        try:
            waits = send_alone(handle, self._open.values(), self._links, self._sender)
        except PoisonedRequestError:
            self._open.clear()
            raise
        if waits:
            self._check_grace(handle)

    def _on_not_held(
        self, shard: ShardKey, handle: Handle, attempt: int, error: ShardFailedError
    ) -> None:
        """Ask another copy, or the same shard under the next placement. The link is fine."""
        part = handle.parts.pop((shard, attempt))
        handle.last_loss = error
        self._metrics.inc(Metric.DISPATCH_RETRIES)
        expert_ids_G, layer = part.rows.expert_ids_G, handle.key[2]
        self._links.not_held(shard, layer, expert_ids_G, str(error))
        if handle.isolation is None or not handle.isolation.lost(
            (shard, attempt), part.slots(), ended=False
        ):
            self._sender.send_slots(handle, part.slots())
        self._check_grace(handle)

    def _retry_uncovered(self, handle: Handle) -> None:
        owner_E = self._links.owners(handle.key[2])
        waiting, handle.uncovered = handle.uncovered, []
        for slots in waiting:
            if (owner_E[slots[0]] >= 0).any():
                self._sender.send_slots(handle, slots)
            else:
                handle.uncovered.append(slots)
        if handle.uncovered:
            self._check_grace(handle)

    def _check_grace(self, handle: Handle) -> None:
        """Fail the step when rows were lost and none has come for the grace time."""
        now_s, grace_s = self._links.clock(), self._config.coverage_grace_s
        if handle.stalled_since_s is None:
            handle.stalled_since_s = now_s
        if now_s - handle.stalled_since_s <= grace_s:
            return
        self._open.clear()
        loss = handle.last_loss
        if loss is not None and (isinstance(loss, ShardFailedError) or not handle.uncovered):
            raise loss
        experts = np.unique(np.concatenate([slots[0] for slots in handle.uncovered]))
        raise CoverageLostError(handle.key[2], len(experts), grace_s)

    def _check_times(self, handle: Handle) -> None:
        """Give up shards that answer pings but not their call."""
        now_s, limit_s = self._links.clock(), self._config.call_timeout_s
        handles = [handle] if handle.isolation is None else self._open.values()
        for (shard, _), part in [item for each in handles for item in each.parts.items()]:
            if now_s - part.sent_at_s > limit_s:
                slow = LinkLostError(f"shard {shard[0]}", f"no reply to a call for {limit_s:g} s")
                self._links.give_up(shard, slow)

    def ask_again(self, handle: Handle) -> None:
        """Fetch what is not finite once more: a reply may have been damaged.

        The second copy is asked where there are two. Raises `PoisonedRequestError` for requests
        whose rows were not finite twice; `NonFiniteRowsError` when whose they are is not known.
        """
        self._metrics.inc(Metric.NON_FINITE_REPLIES)
        if twice := count_non_finite(handle):
            self._open.clear()
            if twice[0] < 0:
                raise NonFiniteRowsError(handle.key[2])
            problem = "experts gave NaN or infinity for its rows twice"
            raise PoisonedRequestError(twice, handle.key[2], problem)
        slots = take_out_non_finite(handle)
        self._open[handle.key] = handle
        self._sender.send_slots_to(handle, slots, self._links.second_owners(handle.key[2]))
