"""Ragged groups of rows, as they come from the host and as they are on the device.

N rows, G groups. Pure: it knows no Triton.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cluster.errors import KernelInputError
from experts.kernels.base import ExpertTable, Int32

_INT32 = np.dtype(np.int32)


@dataclass(frozen=True, slots=True)
class DeviceGroups:
    """Ragged groups whose arrays are on the device; what the host knows of them are bounds."""

    token_idx_N: Tensor
    expert_ids_G: Tensor
    row_offsets_G1: Tensor
    max_rows: int
    """Of one group: the N tile is chosen by it. A wrong one costs time, no bit."""
    num_tiles: int | None = None
    """N tiles of all groups together, where known."""


def check_groups(
    num_tokens: int,
    token_idx_N: Int32,
    expert_ids_G: Int32,
    row_offsets_G1: Int32,
    table: ExpertTable,
) -> None:
    """Raise KernelInputError unless every index points inside and every expert is held."""
    for name, array in (
        ("token_idx", token_idx_N),
        ("expert_ids", expert_ids_G),
        ("row_offsets", row_offsets_G1),
    ):
        if array.dtype != _INT32 or array.ndim != 1:
            raise KernelInputError(name, f"{array.dtype} {array.shape}", "int32, 1-d")
    if len(row_offsets_G1) != len(expert_ids_G) + 1:
        expected = f"{len(expert_ids_G) + 1} values, one more than groups"
        raise KernelInputError("row_offsets", f"{len(row_offsets_G1)}", expected)
    missing = [expert for expert in expert_ids_G.tolist() if not table.holds(expert)]
    if missing:
        raise KernelInputError("expert_ids", f"{missing}", "experts that are held")
    ends = (int(row_offsets_G1[0]), int(row_offsets_G1[-1]))
    if ends != (0, len(token_idx_N)) or (np.diff(row_offsets_G1) < 0).any():
        found = f"{row_offsets_G1.tolist()}"
        raise KernelInputError("row_offsets", found, f"rising from 0 to {len(token_idx_N)}")
    low, high = token_idx_N.min(initial=0), token_idx_N.max(initial=-1)
    if low < 0 or high >= num_tokens:
        raise KernelInputError("token_idx", f"{low} to {high}", f"0 to {num_tokens - 1}")
