"""What torch calls our dtypes. Apart from `cluster.types`, so that those need no torch."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cluster.types import ComputeDtype

TORCH_DTYPES: Mapping[ComputeDtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}
