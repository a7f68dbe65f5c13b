"""The only place where outputs of several experts are added.

Shards return one row per (token, expert); the rank multiplies by the fp32 weight and adds the K
slots in slot order in fp32, then the shared expert's row, and rounds once. That order is what makes
the output independent of the number of shards, of retries and of replicas.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Int64 = npt.NDArray[np.int64]


def combine(
    rows_ND: Tensor, row_of_slot_TK: Int64, topk_weights_TK: Tensor, shared_TD: Tensor
) -> Tensor:
    """Return shared + Σ_k weight[t, k] * rows[row_of_slot[t, k]], summed in slot order in fp32."""
    row_of_slot = torch.from_numpy(row_of_slot_TK)
    total_TD = topk_weights_TK[:, :1] * rows_ND[row_of_slot[:, 0]].float()
    for slot in range(1, row_of_slot.shape[1]):
        total_TD += topk_weights_TK[:, slot : slot + 1] * rows_ND[row_of_slot[:, slot]].float()
    return (total_TD + shared_TD.float()).to(rows_ND.dtype)
