"""Rotary angles of the sliding layers: fp32, no scaling, at absolute positions."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_table(max_positions: int, head_dim: int, theta: float) -> Tensor:
    """Return float32 (max_positions, head_dim): cosines in the first half, sines in the second."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    inverse_frequency = 1.0 / (theta**exponent)
    angles = torch.arange(max_positions).float()[:, None] * inverse_frequency[None, :]
    return torch.cat((angles.cos(), angles.sin()), dim=-1).contiguous()
