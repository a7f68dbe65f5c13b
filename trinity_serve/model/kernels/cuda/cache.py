"""The paged K and V of a pool's layers on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.errors import KernelInputError
from trinity_serve.model.batch import KV_BLOCK_SIZE
from trinity_serve.model.kernels.base import AttentionShape

MAX_HEAD_DIM = 256
"""A row's sums lie in one warp's registers."""
MAX_GROUP = 32
"""Query heads per KV head: they share a block of rows."""


@dataclass(frozen=True)
class CudaKv:
    """K and V as (layers, blocks, K, 32, d): one KV head's tile lies in one piece."""

    keys: Tensor
    values: Tensor
    shape: AttentionShape

    @classmethod
    def zeros(
        cls,
        num_layers: int,
        num_blocks: int,
        shape: AttentionShape,
        dtype: torch.dtype,
        device: torch.device,
    ) -> CudaKv:
        """Allocate. Raises KernelInputError for a shape that the kernels do not take."""
        group, left = divmod(shape.num_heads, shape.num_kv_heads)
        if not 1 <= shape.head_dim <= MAX_HEAD_DIM or left or group > MAX_GROUP:
            expected = f"head_dim up to {MAX_HEAD_DIM}, 1 to {MAX_GROUP} query heads per KV head"
            raise KernelInputError("shape", f"{shape}", expected)
        size = (num_layers, num_blocks, shape.num_kv_heads, KV_BLOCK_SIZE, shape.head_dim)
        keys, values = (torch.zeros(size, dtype=dtype, device=device) for _ in range(2))
        return cls(keys, values, shape)

    @property
    def num_blocks(self) -> int:
        """Blocks in every layer."""
        return self.keys.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.keys.nbytes + self.values.nbytes

    def check_layer(self, layer: int, shape: AttentionShape) -> None:
        """Raise KernelInputError unless this cache has the layer, and is of this shape."""
        num_layers = self.keys.shape[0]
        if not 0 <= layer < num_layers or shape != self.shape:
            found = f"layer {layer} of {shape}"
            raise KernelInputError("layer", found, f"below {num_layers} of {self.shape}")
