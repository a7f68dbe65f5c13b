"""Random weights, tensor by tensor: any one can be made alone from (seed, name).

Values are uniform, from integer random bits and single IEEE operations, so that every machine
writes the same bytes. Ranges keep the residual stream near unit size, attention pointed and
logits a few units wide: greedy text then wanders instead of looping, and routing spreads.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from cluster.model_config import AfmoeConfig
from cluster.torch_dtypes import TORCH_DTYPES
from cluster.types import ComputeDtype
from experts.tensor_names import Shape

_CHUNK_ELEMENTS = 1 << 22
"""Elements in memory at a time (16 MB as float32)."""

_LOGIT_STD = 3.0
_BIAS_HALF_WIDTH = 0.02
"""Near the top of a sigmoid 0.02 is a fifth of a logit: it decides some picks, never all."""

_SILENT_IDS = (0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12)
"""Special tokens except end of turn: a zero row keeps them out of generated text."""


def storage_dtype(name: str, dtype: ComputeDtype) -> ComputeDtype:
    """Return what the tensor is stored in: `expert_bias` is float32 in every checkpoint."""
    return "float32" if name.endswith(".expert_bias") else dtype


def tensor_chunks(
    name: str, shape: Shape, config: AfmoeConfig, seed: int, dtype: ComputeDtype
) -> Iterator[Tensor]:
    """Yield the tensor as flat pieces in row-major order, in its storage dtype."""
    center, half_width = _value_range(name, shape, config)
    random = np.random.Generator(np.random.SFC64(_entropy(seed, name)))
    total = math.prod(shape)
    for start in range(0, total, _CHUNK_ELEMENTS):
        unit = random.random(min(_CHUNK_ELEMENTS, total - start), dtype=np.float32)
        values = (unit - np.float32(0.5)) * np.float32(2 * half_width) + np.float32(center)
        if name == "lm_head.weight":
            _silence(values, start, shape[1])
        yield torch.from_numpy(values).to(TORCH_DTYPES[storage_dtype(name, dtype)])


def make_tensor(
    name: str, shape: Shape, config: AfmoeConfig, seed: int, dtype: ComputeDtype
) -> Tensor:
    """Return one whole tensor, the same bits that `write_checkpoint` stores."""
    return torch.cat(list(tensor_chunks(name, shape, config, seed, dtype))).view(shape)


def _entropy(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")


def _value_range(name: str, shape: Shape, config: AfmoeConfig) -> tuple[float, float]:
    """Return (center, half width) of the uniform distribution."""
    if name.endswith(".expert_bias"):
        return 0.0, _BIAS_HALF_WIDTH
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return 1.5, 0.5
    if name.endswith("norm.weight"):
        return 1.0, 0.5
    std = 1 / math.sqrt(shape[-1])
    if name == "model.embed_tokens.weight" and not config.mup_enabled:
        std = 1.0
    elif name == "lm_head.weight":
        std *= _LOGIT_STD
    return 0.0, math.sqrt(3) * std


def _silence(values: np.ndarray[tuple[int], np.dtype[np.float32]], start: int, width: int) -> None:
    """Zero the silent ids' rows in a flat piece that begins at element `start`."""
    for row in _SILENT_IDS:
        first, last = row * width - start, (row + 1) * width - start
        if last > 0:
            values[max(first, 0) : last] = 0.0
