"""`router.plan.plan_rows` in C (see `kernels/cpu/src/plan.c`): the same plan, number for number."""

from __future__ import annotations

import ctypes

import numpy as np

from cluster.errors import KernelInputError
from experts.kernels.cpu.library import Status, address
from router.plan import Int32, Int64, Plan, ShardRows
from trinity_serve.model.kernels.cpu.library import ModelLibrary

_P = ctypes.c_void_p
_FIELDS = 5


class _PlanStruct(ctypes.Structure):
    """struct ts_plan."""

    _fields_ = (
        ("num_shards", ctypes.c_int64),
        ("num_groups", ctypes.c_int64),
        ("shards", _P),
        ("expert_ids", _P),
        ("row_offsets", _P),
        ("token_idx", _P),
        ("tokens", _P),
        ("row_of_slot", _P),
        ("place", _P),
    )


class CpuPlanner:
    """Plans the rows of a layer; see `router.plan.plan_rows`."""

    def __init__(self, library: ModelLibrary) -> None:
        self._plan_rows = library.c.ts_plan_rows

    def __call__(self, topk_ids_TK: Int64, shard_of_expert_E: Int32) -> Plan:
        """Group the rows of a layer by (shard, expert)."""
        num_tokens, top_k = topk_ids_TK.shape
        num_rows, num_experts = num_tokens * top_k, len(shard_of_expert_E)
        # No shard without a group: where there are few rows, there are few of both.
        max_groups = min(num_rows, num_experts)
        shards = np.empty((max_groups, _FIELDS), np.int64)
        expert_ids = np.empty(max_groups, np.int32)
        row_offsets = np.empty(2 * max_groups, np.int32)
        token_idx, place = np.empty(num_rows, np.int32), np.empty(num_tokens, np.int32)
        tokens, row_of_slot = np.empty(num_rows, np.int64), np.empty((num_tokens, top_k), np.int64)
        struct = _PlanStruct(
            0,
            0,
            address(shards),
            address(expert_ids),
            address(row_offsets),
            address(token_idx),
            address(tokens),
            address(row_of_slot),
            address(place),
        )
        status = self._plan_rows(
            address(topk_ids_TK),
            num_tokens,
            top_k,
            address(shard_of_expert_E),
            num_experts,
            ctypes.addressof(struct),
        )
        if status != Status.OK:
            raise KernelInputError("topk_ids", f"{topk_ids_TK.tolist()}", "experts with an owner")
        found = shards[: struct.num_shards].tolist()
        planned = []
        for i, (position, group, row, first, end) in enumerate(found):
            last_row = found[i + 1][2] if i + 1 < len(found) else num_rows
            last_group = found[i + 1][1] if i + 1 < len(found) else struct.num_groups
            planned.append(
                ShardRows(
                    position,
                    None if end - first == num_tokens else tokens[first:end],
                    expert_ids[group:last_group],
                    row_offsets[group + i : last_group + i + 1],
                    token_idx[row:last_row],
                    row,
                )
            )
        return Plan(tuple(planned), row_of_slot)
