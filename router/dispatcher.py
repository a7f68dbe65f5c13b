"""Sends a layer's rows to expert shards and collects their weighted sum, whatever fails meanwhile.

An expert call is a pure function, so rows whose shard is lost are planned again onto another copy,
or wait for the pool to bring the expert back; no attempt can change a bit of the result. A reply is
matched by the identity of its call, so an answer to a given-up attempt is dropped.

T tokens, K slots per token, N = T*K rows, D hidden. Used by one thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cluster.errors import (
    CoverageLostError,
    LinkLostError,
    NonFiniteRowsError,
    ShardFailedError,
    TrinityError,
)
from cluster.metrics import Metric, Metrics
from cluster.placement import Placement
from cluster.wire import CallError, CallId, ExpertCall, ExpertReply, Frame
from router.config import DispatchConfig
from router.links import ShardKey, ShardLinks
from router.plan import Int32, Int64, Plan, ShardRows, plan_rows, plan_slots

Planner = Callable[[Int64, Int32], Plan]
HandleKey = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class RankIdentity:
    """Who calls: goes into every frame."""

    rank: int
    incarnation: int
    model: bytes


@dataclass(slots=True)
class _Part:
    """Rows asked of one shard in one attempt, and where they belong among the handle's rows."""

    rows: ShardRows
    dest: slice | Int64
    sent_at_s: float


@dataclass(slots=True)
class Handle:
    """One dispatched layer. Pins what is needed to send any of its rows again."""

    key: HandleKey
    hidden_TD: Tensor
    topk_ids_TK: Int64
    row_of_slot_TK: Int64
    rows_ND: Tensor | None = None
    parts: dict[tuple[ShardKey, int], _Part] = field(default_factory=dict)
    """Outstanding, by (shard, attempt)."""
    uncovered: list[tuple[Int64, Int64, Int64]] = field(default_factory=list)
    """(expert_N, token_N, dest_N) that wait for coverage."""
    attempts: int = 0
    stalled_since_s: float | None = None
    checked_again: bool = False


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
        self._plan_rows = planner
        self._links = links
        self._config = config
        self._metrics = metrics
        self._step = 0
        self._open: dict[HandleKey, Handle] = {}
        self._published: deque[Placement] = deque(maxlen=1)
        self.observe: Callable[[int, Tensor], None] | None = None
        """Told (MoE layer, topk_ids_TK) of every dispatch; for `routed_experts` and tests."""

    def publish(self, placement: Placement) -> None:
        """Hand over a newer placement; thread-safe. Taken at the next step, or while stalled."""
        self._published.append(placement)
        self._links.wake()

    def begin_step(self) -> None:
        """Start a forward pass under the newest placement, with nothing in flight."""
        self._step += 1
        self._open.clear()
        self._take_published()

    def wait(self, timeout_s: float) -> None:
        """Idle: answer pings, mend links, take placements, until the timeout or `wake`."""
        self._take_published()
        for _, item in self._links.wait(timeout_s):
            if isinstance(item, TrinityError):
                self._metrics.inc(Metric.SHARDS_LOST)

    def wake(self) -> None:
        """End `wait` early; thread-safe."""
        self._links.wake()

    def missing(self) -> list[str]:
        """Return why rows cannot be served now, one line each; empty when all is well."""
        if self._links.placement is None:
            return ["no placement has been published yet"]
        if not self._links.placement.covered:
            return ["the placement does not cover every expert", *self._links.missing()]
        return self._links.missing()

    def _take_published(self) -> None:
        if self._published:
            self._links.apply(self._published.popleft())

    def dispatch(
        self, moe_layer: int, hidden_TD: Tensor, topk_ids_TK: Int64, micro_batch: int = 0
    ) -> Handle:
        """Send each shard its rows; returns at once.

        Args:
            moe_layer: counted over MoE layers from 0.
            hidden_TD: the layer's input rows, compute dtype; not to be written until `collect`
                returns.
            topk_ids_TK: chosen experts.
            micro_batch: tells apart what is in flight for the same layer.
        """
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
            for rows in plan.shards:
                dest = slice(rows.first_row, rows.first_row + rows.num_rows)
                self._send(handle, rows, dest)
            if self._config.num_ranks > 1:
                self._send_headers(handle, {rows.shard_idx for rows in plan.shards})
        return handle

    def _dispatch_uncovered(self, key: HandleKey, hidden_TD: Tensor, topk_ids_TK: Int64) -> Handle:
        """The slow way, slot by slot, for when some expert has no living shard."""
        num_tokens, top_k = topk_ids_TK.shape
        slots_N = np.arange(num_tokens * top_k)
        row_of_slot_TK = slots_N.reshape(num_tokens, top_k)
        handle = Handle(key, hidden_TD, topk_ids_TK, row_of_slot_TK)
        self._open[key] = handle
        self._send_every_slot(handle)
        return handle

    def _send_every_slot(self, handle: Handle) -> None:
        top_k = handle.topk_ids_TK.shape[1]
        token_N = np.arange(handle.topk_ids_TK.size) // top_k
        dest_N = handle.row_of_slot_TK.reshape(-1)
        self._send_slots(handle, handle.topk_ids_TK.reshape(-1), token_N, dest_N)

    def _send_headers(self, handle: Handle, busy: set[int]) -> None:
        """Tell shards without rows that this rank has passed the layer."""
        assert self._links.placement is not None
        for shard_idx in range(len(self._links.placement.shards)):
            if shard_idx not in busy:
                empty = np.empty(0, np.int32)
                rows = ShardRows(shard_idx, None, empty, np.zeros(1, np.int32), empty, 0)
                self._links.send(shard_idx, self._call(handle, rows, handle.hidden_TD[:0]))

    def _send(self, handle: Handle, rows: ShardRows, dest: slice | Int64) -> None:
        hidden_TD = handle.hidden_TD
        if rows.tokens is not None:
            hidden_TD = hidden_TD[torch.from_numpy(rows.tokens)]
        call = self._call(handle, rows, hidden_TD)
        shard = self._links.send(rows.shard_idx, call)
        handle.parts[shard, call.call_id.attempt] = _Part(rows, dest, self._links.clock())
        self._metrics.inc(Metric.DISPATCH_CALLS)
        self._metrics.inc(Metric.DISPATCH_ROWS, rows.num_rows)

    def _call(self, handle: Handle, rows: ShardRows, hidden_TD: Tensor) -> ExpertCall:
        assert self._links.placement is not None
        step, micro_batch, layer = handle.key
        who = self._identity
        return ExpertCall(
            CallId(who.rank, who.incarnation, step, micro_batch, layer, handle.attempts),
            who.model,
            self._links.placement.version,
            int(self._config.call_timeout_s * 1e6),
            rows.expert_ids_G,
            rows.row_offsets_G1,
            rows.token_idx_N,
            hidden_TD,
        )

    def collect(self, handle: Handle) -> tuple[Tensor, Int64]:
        """Wait for every row of `handle`; return (rows_ND, row_of_slot_TK).

        Rows of lost shards are sent elsewhere meanwhile. Raises `CoverageLostError` when an expert
        has had no living shard for the grace time.
        """
        self._collect(handle)
        assert handle.rows_ND is not None
        return handle.rows_ND, handle.row_of_slot_TK

    def _collect(self, handle: Handle) -> None:
        while handle.parts or handle.uncovered:
            timeout_s = 0.05 if handle.uncovered else 0.5
            for shard, item in self._links.wait(timeout_s):
                self._on_item(shard, item)
            self._check_times(handle)
            if handle.uncovered:
                self._retry_uncovered(handle)

    def _on_item(self, shard: ShardKey, item: Frame | TrinityError) -> None:
        if isinstance(item, ExpertReply):
            self._on_reply(shard, item)
        elif isinstance(item, CallError):
            self._on_call_error(shard, item)
        elif isinstance(item, TrinityError):
            self._on_lost(shard)

    def _on_reply(self, shard: ShardKey, reply: ExpertReply) -> None:
        call = reply.call_id
        handle = self._open.get((call.step, call.micro_batch, call.layer))
        part = handle.parts.pop((shard, call.attempt), None) if handle is not None else None
        if handle is None or part is None or call.incarnation != self._identity.incarnation:
            self._metrics.inc(Metric.LATE_REPLIES)
            return
        num_rows, hidden_size = part.rows.num_rows, handle.hidden_TD.shape[1]
        rows_ND = reply.rows_ND
        if rows_ND.shape != (num_rows, hidden_size) or rows_ND.dtype != handle.hidden_TD.dtype:
            handle.parts[shard, call.attempt] = part
            wrong = f"rows {tuple(rows_ND.shape)}, not {(num_rows, hidden_size)}"
            self._links.give_up(shard, ShardFailedError(shard[0], wrong))
            return
        if num_rows == handle.row_of_slot_TK.size and isinstance(part.dest, slice):
            handle.rows_ND = rows_ND
            return
        if handle.rows_ND is None:
            handle.rows_ND = handle.hidden_TD.new_empty((handle.row_of_slot_TK.size, hidden_size))
        dest = part.dest if isinstance(part.dest, slice) else torch.from_numpy(part.dest)
        handle.rows_ND[dest] = rows_ND

    def _on_call_error(self, shard: ShardKey, error: CallError) -> None:
        call = error.call_id
        handle = self._open.get((call.step, call.micro_batch, call.layer))
        if handle is None or (shard, call.attempt) not in handle.parts:
            self._metrics.inc(Metric.LATE_REPLIES)
            return
        # Whatever the reason, this shard cannot serve what the placement says it does.
        self._links.give_up(shard, ShardFailedError(shard[0], f"{error.code}: {error.message}"))

    def _on_lost(self, shard: ShardKey) -> None:
        self._metrics.inc(Metric.SHARDS_LOST)
        for handle in list(self._open.values()):
            for key in [key for key in handle.parts if key[0] == shard]:
                self._send_again(handle, handle.parts.pop(key))

    def _send_again(self, handle: Handle, part: _Part) -> None:
        self._metrics.inc(Metric.DISPATCH_RETRIES)
        rows = part.rows
        expert_N = np.repeat(rows.expert_ids_G, np.diff(rows.row_offsets_G1)).astype(np.int64)
        token_N = rows.token_idx_N if rows.tokens is None else rows.tokens[rows.token_idx_N]
        dest = part.dest
        dest_N = np.arange(dest.start, dest.stop) if isinstance(dest, slice) else dest
        self._send_slots(handle, expert_N, token_N.astype(np.int64), dest_N)

    def _send_slots(self, handle: Handle, expert_N: Int64, token_N: Int64, dest_N: Int64) -> None:
        """Send rows slot by slot under the newest placement; keep what nobody holds for later."""
        handle.attempts += 1
        owner_E = self._links.owners(handle.key[2])
        covered_N = owner_E[expert_N] >= 0
        if not covered_N.all():
            self._metrics.inc(Metric.COVERAGE_STALLS)
            lost_N = ~covered_N
            handle.uncovered.append((expert_N[lost_N], token_N[lost_N], dest_N[lost_N]))
            expert_N, token_N, dest_N = expert_N[covered_N], token_N[covered_N], dest_N[covered_N]
        if len(expert_N) == 0:
            return
        plan = plan_slots(expert_N, token_N, handle.hidden_TD.shape[0], owner_E)
        dest_in_plan_order_N = np.empty_like(dest_N)
        dest_in_plan_order_N[plan.row_of_slot] = dest_N
        for rows in plan.shards:
            own = slice(rows.first_row, rows.first_row + rows.num_rows)
            self._send(handle, rows, dest_in_plan_order_N[own])

    def _retry_uncovered(self, handle: Handle) -> None:
        now_s = self._links.clock()
        if handle.stalled_since_s is None:
            handle.stalled_since_s = now_s
        self._take_published()
        owner_E = self._links.owners(handle.key[2])
        waiting, handle.uncovered = handle.uncovered, []
        for slots in waiting:
            if (owner_E[slots[0]] >= 0).any():
                self._send_slots(handle, *slots)
            else:
                handle.uncovered.append(slots)
        if not handle.uncovered:
            handle.stalled_since_s = None
        elif now_s - handle.stalled_since_s > self._config.coverage_grace_s:
            experts = np.unique(np.concatenate([slots[0] for slots in handle.uncovered]))
            self._open.clear()
            raise CoverageLostError(handle.key[2], len(experts), self._config.coverage_grace_s)

    def _check_times(self, handle: Handle) -> None:
        """Give up shards that answer pings but not their call."""
        now_s, limit_s = self._links.clock(), self._config.call_timeout_s
        for (shard, _), part in list(handle.parts.items()):
            if now_s - part.sent_at_s > limit_s:
                slow = LinkLostError(f"shard {shard[0]}", f"no reply to a call for {limit_s:g} s")
                self._links.give_up(shard, slow)

    def ask_again(self, handle: Handle) -> None:
        """Fetch all rows once more: their sum was not finite, so a reply may have been damaged.

        Raises `NonFiniteRowsError` when they have been fetched twice already.
        """
        self._metrics.inc(Metric.NON_FINITE_REPLIES)
        if handle.checked_again:
            self._open.clear()
            raise NonFiniteRowsError(handle.key[2])
        handle.checked_again = True
        handle.rows_ND = None
        self._send_every_slot(handle)
