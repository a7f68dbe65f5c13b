"""The AFMoE gate: which experts a token goes to, and with what weight.

T tokens, E experts, K experts per token.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gate(
    logits_TE: Tensor, expert_bias_E: Tensor, top_k: int, route_scale: float
) -> tuple[Tensor, Tensor]:
    """Choose K experts per token.

    Args:
        logits_TE: router logits, float32.
        expert_bias_E: selection bias, float32. It moves the choice, never the weight.
        top_k: K.
        route_scale: factor on the normalised weights.

    Returns:
        topk_ids_TK (int64), by descending biased score, the lower id first among equals; and
        topk_weights_TK (float32): unbiased scores over their sum in slot order, times the scale.
    """
    # torch.sigmoid takes the last elements of a tensor by another routine, so that a score would
    # depend on how many rows there are; exp, add and divide do not.
    scores_TE = 1.0 / (1.0 + torch.exp(-logits_TE))
    order_TE = torch.sort(scores_TE + expert_bias_E, dim=-1, descending=True, stable=True).indices
    topk_ids_TK = order_TE[:, :top_k].contiguous()
    weights_TK = scores_TE.gather(1, topk_ids_TK)
    # Summed slot by slot: a library reduction may choose its order by the number of rows.
    total_T1 = weights_TK[:, :1].clone()
    for slot in range(1, top_k):
        total_T1 += weights_TK[:, slot : slot + 1]
    return topk_ids_TK, weights_TK / (total_T1 + 1e-20) * route_scale
