"""Makes a layer's calls and sends them: plans in, frames out, and each part noted in its handle.

T tokens, K slots per token, N rows, E experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cluster.metrics import Metric, Metrics
from cluster.wire import CallId, ExpertCall
from router.config import DispatchConfig
from router.copies import key_of
from router.handle import Handle, Part
from router.isolation import Slots
from router.links import ShardLinks
from router.plan import Int32, Int64, Plan, ShardRows, plan_slots

_NONE: Int32 = np.empty(0, np.int32)
_ZERO: Int32 = np.zeros(1, np.int32)


@dataclass(frozen=True, slots=True)
class RankIdentity:
    """Who calls: goes into every frame."""

    rank: int
    incarnation: int
    model: bytes


class CallSender:
    """Sends what one rank asks of its shards; never waits."""

    def __init__(
        self, identity: RankIdentity, links: ShardLinks, config: DispatchConfig, metrics: Metrics
    ) -> None:
        self.identity = identity
        self._links = links
        self._budget_us = int(config.call_timeout_s * 1e6)
        self.metrics = metrics
        self.late_after_s = math.inf
        """No call counts as late before it has been away for so long."""

    def send_plan(self, handle: Handle, plan: Plan) -> None:
        """Send a layer's rows for the first time, as planned."""
        for rows in plan.shards:
            self._send(handle, rows, slice(rows.first_row, rows.first_row + rows.num_rows))
        assert self._links.placement is not None
        if self._links.placement.num_ranks > 1:
            self._send_headers(handle, {rows.shard_idx for rows in plan.shards})

    def send_slots(self, handle: Handle, slots: Slots) -> None:
        """Send rows slot by slot under the newest placement; keep what nobody holds for later."""
        self.send_slots_to(handle, slots, self._links.owners(handle.key[2]))

    def send_slots_to(self, handle: Handle, slots: Slots, owner_E: Int32) -> None:
        """Do as `send_slots` under owners that the caller chose."""
        expert_N, token_N, dest_N = slots
        handle.attempts += 1
        covered_N = owner_E[expert_N] >= 0
        if not covered_N.all():
            self.metrics.inc(Metric.COVERAGE_STALLS)
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

    def _send_headers(self, handle: Handle, busy: set[int]) -> None:
        """Tell shards without rows that this rank has passed the layer."""
        assert self._links.placement is not None
        for shard_idx, shard in enumerate(self._links.placement.shards):
            if shard_idx not in busy and self._links.alive(key_of(shard)):
                rows = ShardRows(shard_idx, None, _NONE, _ZERO, _NONE, 0)
                self._links.send(shard_idx, self._call(handle, rows, handle.hidden_TD[:0]))

    def _send(self, handle: Handle, rows: ShardRows, dest: slice | Int64) -> None:
        hidden_TD = handle.hidden_TD
        if rows.tokens is not None:
            hidden_TD = hidden_TD[torch.from_numpy(rows.tokens)]
        call = self._call(handle, rows, hidden_TD)
        shard = self._links.send(rows.shard_idx, call)
        now_s = self._links.clock()
        handle.parts[shard, call.call_id.attempt] = Part(rows, dest, now_s)
        handle.late_at_s = min(handle.late_at_s, now_s + self.late_after_s)
        self.metrics.inc(Metric.DISPATCH_CALLS)
        self.metrics.inc(Metric.DISPATCH_ROWS, rows.num_rows)

    def call_id(self, handle: Handle, attempt: int) -> CallId:
        """Return how frames name an attempt at a layer."""
        step, micro_batch, layer = handle.key
        who = self.identity
        return CallId(who.rank, who.incarnation, step, micro_batch, layer, attempt)

    def _call(self, handle: Handle, rows: ShardRows, hidden_TD: Tensor) -> ExpertCall:
        assert self._links.placement is not None
        return ExpertCall(
            self.call_id(handle, handle.attempts),
            self.identity.model,
            self._links.placement.version,
            self._budget_us,
            rows.expert_ids_G,
            rows.row_offsets_G1,
            rows.token_idx_N,
            hidden_TD,
        )
