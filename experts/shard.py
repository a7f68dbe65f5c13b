"""An expert shard as a plain object: calls in, replies out. No sockets, no clock.

Calls for the same layer run as one grouped product, so that its weights are read once for all of
them. An output row depends on its input row alone, so who shares a product changes no bit.

T tokens, N rows, G groups, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.types import PlacementVersion
from cluster.wire import CallError, ExpertCall, ExpertReply
from experts.store import ExpertStore


@dataclass(frozen=True)
class ShardIdentity:
    """What a shard says of itself in replies."""

    shard_id: int
    incarnation: int
    model: bytes


class ExpertShard:
    """Computes calls over the experts of a store. Used by one thread."""

    def __init__(self, identity: ShardIdentity, store: ExpertStore) -> None:
        self.identity = identity
        self.store = store
        self.placement_version = PlacementVersion(0, 0)
        self._held_LE = self._look()
        self.num_changes = 0
        """Of what the store holds; what was checked since the last one need not be again."""

    def _look(self) -> npt.NDArray[np.bool_]:
        tables = self.store.tables
        return np.array([[table.holds(e) for e in range(table.num_experts)] for table in tables])

    def refresh(self) -> None:
        """Look again at which experts the store holds, after it has changed."""
        self._held_LE = self._look()
        self.num_changes += 1

    def _holds(self, layer: int, ids_G: npt.NDArray[np.int32]) -> bool:
        try:
            return bool(self._held_LE[layer].take(ids_G).all())
        except IndexError:
            return False

    def check(self, call: ExpertCall) -> CallError | None:
        """Return why a call cannot be computed, or None."""
        if call.model != self.identity.model:
            return self._error(call, "wrong_model", "the call is for another model")
        layer, width = call.call_id.layer, call.hidden_TD.shape[1]
        if layer >= len(self.store.tables):
            problem = f"layer {layer}; this model has {len(self.store.tables)} MoE layers"
            return self._error(call, "malformed_frame", problem)
        table = self.store.tables[layer]
        if width != table.hidden_size:
            problem = f"rows of width {width}; this model's are {table.hidden_size}"
            return self._error(call, "malformed_frame", problem)
        if call.hidden_TD.dtype != table.dtype:
            problem = f"rows of {call.hidden_TD.dtype}; this shard computes {table.dtype}"
            return self._error(call, "wrong_bit_class", problem)
        ids = call.expert_ids_G
        if len(ids) and not self._holds(layer, ids):
            missing = [int(e) for e in ids if e >= table.num_experts or not self._held_LE[layer, e]]
            problem = f"shard {self.identity.shard_id} does not hold experts {missing[:8]}"
            return self._error(call, "expert_not_held", f"{problem} of MoE layer {layer}")
        return None

    def _error(self, call: ExpertCall, code: str, message: str) -> CallError:
        return CallError(call.call_id, code, message, self.placement_version)

    def compute(self, calls: Sequence[ExpertCall]) -> list[Tensor]:
        """Compute checked calls of one layer, in one product; return each one's (N, D) rows."""
        table = self.store.tables[calls[0].call_id.layer]
        swiglu = self.store.kernels.grouped_swiglu
        if len(calls) == 1:
            call = calls[0]
            rows = (call.token_idx_N, call.expert_ids_G, call.row_offsets_G1)
            return [swiglu(call.hidden_TD, *rows, table)]
        merged = _merge(calls)
        rows_ND = swiglu(
            merged.hidden_TD, merged.token_idx_N, merged.expert_ids_G, merged.row_offsets_G1, table
        )
        parts, start = [], 0
        for call in calls:
            places = merged.place_of_row[start : start + len(call.token_idx_N)]
            parts.append(rows_ND[torch.from_numpy(places)])
            start += len(call.token_idx_N)
        return parts

    def reply(
        self, call: ExpertCall, rows_ND: Tensor, queue_s: float, took_s: float
    ) -> ExpertReply:
        """Return the answer to a call: its rows, and how long it waited and was computed."""
        return ExpertReply(
            call.call_id,
            self.identity.incarnation,
            self.placement_version,
            rows_ND,
            int(queue_s * 1e6),
            int(took_s * 1e6),
        )


@dataclass(frozen=True, slots=True)
class _Merged:
    hidden_TD: Tensor
    token_idx_N: np.typing.NDArray[np.int32]
    expert_ids_G: np.typing.NDArray[np.int32]
    row_offsets_G1: np.typing.NDArray[np.int32]
    place_of_row: np.typing.NDArray[np.int64]
    """Where each row of the calls, laid end to end, is in the merged product."""


def _merge(calls: Sequence[ExpertCall]) -> _Merged:
    """Lay calls end to end and regroup their rows by expert."""
    first_token = np.cumsum([0] + [call.hidden_TD.shape[0] for call in calls[:-1]])
    token_N = np.concatenate(
        [call.token_idx_N + first for call, first in zip(calls, first_token, strict=True)]
    )
    expert_N = np.concatenate(
        [np.repeat(call.expert_ids_G, np.diff(call.row_offsets_G1)) for call in calls]
    )
    order_N = np.argsort(expert_N, kind="stable")
    place_of_row = np.empty_like(order_N)
    place_of_row[order_N] = np.arange(len(order_N))
    sorted_N = expert_N[order_N]
    starts = np.flatnonzero(np.diff(sorted_N, prepend=-1))
    return _Merged(
        hidden_TD=torch.cat([call.hidden_TD for call in calls]),
        token_idx_N=token_N[order_N].astype(np.int32),
        expert_ids_G=sorted_N[starts].astype(np.int32),
        row_offsets_G1=np.append(starts, len(order_N)).astype(np.int32),
        place_of_row=place_of_row,
    )
