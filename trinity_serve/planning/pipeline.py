"""Conditions under which attention and expert devices keep each other busy.

Ta and Te are one micro-batch's time in one attention and one expert layer, Tc the time of one
transfer, Tf = max(Ta, Te). Source: MegaScale-Infer (pipeline), FastAFD (identity), Step-3 (budget).
"""

from __future__ import annotations

import math


def min_micro_batches(transfer_s: float, slower_s: float) -> int:
    """Return the fewest micro-batches that hide the transfers: m >= 2 (1 + Tc/Tf)."""
    return math.ceil(2 * (1 + transfer_s / slower_s))


def separation_speedup(
    batch_ratio: float, step_ratio: float, num_attention: int, num_experts: int
) -> float:
    """Return tokens per second and device of separate devices over co-located ones.

    `batch_ratio`: of sequences per attention device; `step_ratio`: of step times, both separate
    over co-located.
    """
    return batch_ratio / step_ratio * num_attention / (num_attention + num_experts)


def layer_budget_s(time_per_token_s: float, num_layers: int) -> float:
    """Return what one layer may take for a token to take `time_per_token_s`."""
    return time_per_token_s / num_layers


def tokens_for_arithmetic(
    flops: float, memory_bytes_per_s: float, bytes_per_weight: float, experts_per_choice: float
) -> float:
    """Return how many tokens in flight make experts bound by arithmetic instead of memory.

    A weight costs two operations per row, and a row reaches one of `experts_per_choice` (E/K)
    experts.
    """
    rows_per_expert = flops / memory_bytes_per_s * bytes_per_weight / 2
    return rows_per_expert * experts_per_choice
