"""What memory allows at most: bytes that a decode step must read over the bandwidth measured here.

A step reads the dense weights once and every expert that some token chose; KV is left out. The
expected number of experts hit by T tokens is E (1 - (1 - K/E)^T), for a router without favourites.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.model_config import AfmoeConfig
from cluster.torch_dtypes import TORCH_DTYPES
from experts.kernels.cpu.library import ExpertLibrary
from experts.tensor_names import is_routed_expert, tensor_shapes

READ_BYTES = 512 << 20
"""Many times the last-level cache."""


def measure_read_bytes_per_s(num_threads: int, repeats: int = 8) -> float:
    """Return the best memory read rate of `repeats` passes by so many threads."""
    library = ExpertLibrary()
    before = library.num_threads
    library.set_threads(num_threads)
    try:
        return float(READ_BYTES / library.c.ts_read_seconds(READ_BYTES, repeats))
    finally:
        library.set_threads(before)


@dataclass(frozen=True)
class StepBytes:
    """Weight bytes that one decode step reads."""

    dense_bytes: int
    expert_bytes: int
    """Of one expert of one layer."""
    num_moe_layers: int
    num_experts: int
    top_k: int

    @classmethod
    def of(cls, config: AfmoeConfig) -> StepBytes:
        """Count what the checkpoint holds; of the embedding table a step reads a few rows."""
        item = TORCH_DTYPES[config.dtype].itemsize
        dense = sum(
            math.prod(shape)
            for name, shape in tensor_shapes(config)
            if not is_routed_expert(name) and "embed_tokens" not in name
        )
        expert = 3 * config.hidden_size * config.moe_intermediate_size
        return cls(
            dense * item,
            expert * item,
            config.num_moe_layers,
            config.num_experts,
            config.num_experts_per_tok,
        )

    def experts_hit(self, num_tokens: int) -> float:
        """Return how many experts of a layer so many tokens hit, on average."""
        return self.num_experts * (1 - (1 - self.top_k / self.num_experts) ** num_tokens)

    def at(self, num_tokens: int) -> float:
        """Return the bytes of a step over so many tokens."""
        return self.dense_bytes + (
            self.num_moe_layers * self.experts_hit(num_tokens) * self.expert_bytes
        )

    def ceiling_tokens_per_s(self, num_tokens: int, read_bytes_per_s: float) -> float:
        """Return the decode rate at which memory would be the only limit."""
        return num_tokens * read_bytes_per_s / self.at(num_tokens)
