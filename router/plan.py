"""Rows of one MoE layer grouped by shard and expert, in a few vectorised operations.

T tokens, K slots per token, N = T*K rows, E experts, S shards, G groups (experts hit on a shard).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ShardRows:
    """What one shard is asked for. Each token travels once, with the list of its local experts."""

    shard_idx: int
    tokens: Int64 | None
    """Token rows to send, ascending; None when every token of the batch goes, in order."""
    expert_ids_G: Int32
    row_offsets_G1: Int32
    token_idx_N: Int32
    """Into `tokens`."""
    first_row: int
    """Where this shard's rows start among all rows of the plan."""

    @property
    def num_rows(self) -> int:
        """Rows that come back."""
        return len(self.token_idx_N)


@dataclass(frozen=True, slots=True)
class Plan:
    """All shards' rows, and where each slot's row will be once replies are laid end to end."""

    shards: tuple[ShardRows, ...]
    row_of_slot: Int64
    """Shaped like the planned ids: (T, K), or (N,) for a re-plan of single slots."""


def plan_rows(topk_ids_TK: Int64, shard_of_expert_E: Int32) -> Plan:
    """Group the rows of a layer by (shard, expert).

    Args:
        topk_ids_TK: chosen experts; every one must be covered (owner >= 0).
        shard_of_expert_E: position of each expert's owner in the placement's shards.

    Returns:
        Shards in ascending order; within one, experts ascending; within an expert, tokens.
    """
    num_tokens, top_k = topk_ids_TK.shape
    tokens_N = np.repeat(np.arange(num_tokens), top_k)
    plan = plan_slots(topk_ids_TK.reshape(-1), tokens_N, num_tokens, shard_of_expert_E)
    return Plan(plan.shards, plan.row_of_slot.reshape(num_tokens, top_k))


def plan_slots(expert_N: Int64, token_N: Int64, num_tokens: int, shard_of_expert_E: Int32) -> Plan:
    """Group single (token, expert) slots: `plan_rows` for any subset of a layer's slots."""
    num_experts = len(shard_of_expert_E)
    shard_N = shard_of_expert_E[expert_N]
    key_N = shard_N * np.int64(num_experts) + expert_N
    order_N = np.argsort(key_N, kind="stable")
    row_of_slot_N = np.empty_like(order_N)
    row_of_slot_N[order_N] = np.arange(len(order_N))
    sorted_key_N = key_N[order_N]
    group_starts = np.flatnonzero(np.diff(sorted_key_N, prepend=-1))
    group_shard, group_expert = np.divmod(sorted_key_N[group_starts], num_experts)
    shard_starts = np.flatnonzero(np.diff(group_shard, prepend=-1))
    bounds = np.append(group_starts, len(order_N))
    shards = []
    for first, last in zip(
        shard_starts, np.append(shard_starts[1:], len(group_starts)), strict=True
    ):
        start, stop = bounds[first], bounds[last]
        tokens, token_idx_N = _each_token_once(token_N[order_N[start:stop]], num_tokens)
        shards.append(
            ShardRows(
                shard_idx=int(group_shard[first]),
                tokens=tokens,
                expert_ids_G=group_expert[first:last].astype(np.int32),
                row_offsets_G1=(bounds[first : last + 1] - start).astype(np.int32),
                token_idx_N=token_idx_N,
                first_row=int(start),
            )
        )
    return Plan(tuple(shards), row_of_slot_N)


def _each_token_once(token_N: Int64, num_tokens: int) -> tuple[Int64 | None, Int32]:
    """Return the distinct tokens (None when all are there) and each row's place among them."""
    present_T = np.zeros(num_tokens, dtype=bool)
    present_T[token_N] = True
    if present_T.all():
        return None, token_N.astype(np.int32)
    place_T = np.cumsum(present_T, dtype=np.int32) - 1
    return np.flatnonzero(present_T), place_T[token_N].astype(np.int32)
