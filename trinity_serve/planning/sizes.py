"""Bytes and operations of an AFMoE model in the forms that weights and KV come in.

D hidden size, F expert width, E experts, K experts per token. Everything is counted from the
configuration; a decoded token is one row through every layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cluster.model_config import AfmoeConfig

_BF16_BYTES = 2
_FLOAT32_BYTES = 4


class WeightForm(StrEnum):
    """How matrices are stored, by the published checkpoints' names."""

    BF16 = "bf16"
    FP8 = "fp8"
    """One byte, and a float32 scale per block of 128 × 128."""
    INT4 = "int4"
    """Half a byte, and a bf16 scale per 128 inputs (W4A16)."""
    NVFP4 = "nvfp4"
    """Half a byte, and an FP8 scale per 16 inputs."""

    @property
    def bytes_per_weight(self) -> float:
        """Bytes of one weight with its share of the scales."""
        return {
            WeightForm.BF16: 2.0,
            WeightForm.FP8: 1 + _FLOAT32_BYTES / 128**2,
            WeightForm.INT4: 0.5 + _BF16_BYTES / 128,
            WeightForm.NVFP4: 0.5 + 1 / 16,
        }[self]


@dataclass(frozen=True)
class ModelSizes:
    """One model with its weights and KV in given forms."""

    config: AfmoeConfig
    experts: WeightForm = WeightForm.BF16
    rest: WeightForm = WeightForm.BF16
    """Attention, dense layers and shared experts; embedding, head and router stay bf16."""
    kv_element_bytes: int = _BF16_BYTES

    @property
    def expert_bytes(self) -> float:
        """Bytes of one expert of one layer."""
        return self._expert_parameters * self.experts.bytes_per_weight

    @property
    def routed_bytes(self) -> float:
        """Bytes of every expert of every layer."""
        config = self.config
        return config.num_moe_layers * config.num_experts * self.expert_bytes

    def slice_bytes(self, num_shards: int, copies: int = 1) -> float:
        """Bytes of the largest of `num_shards` slices that hold `copies` of each expert."""
        return (
            self.slice_experts(num_shards, copies)
            * self.config.num_moe_layers
            * (self.expert_bytes)
        )

    def slice_experts(self, num_shards: int, copies: int = 1) -> int:
        """Experts per layer in the largest slice."""
        return -(-self.config.num_experts * copies // num_shards)

    @property
    def rank_bytes(self) -> float:
        """Bytes of everything but the routed experts: what each rank holds."""
        config = self.config
        num_norms = config.num_hidden_layers * (4 * config.hidden_size + 2 * config.head_dim)
        bf16 = 2 * self._vocabulary + self._router + num_norms + config.hidden_size
        bias = config.num_moe_layers * config.num_experts
        matrices = self._matrices * self.rest.bytes_per_weight
        return matrices + bf16 * _BF16_BYTES + bias * _FLOAT32_BYTES

    @property
    def rank_read_bytes(self) -> float:
        """Bytes of a rank's weights that a step reads: of the embedding only some rows."""
        return self.rank_bytes - self._vocabulary * _BF16_BYTES

    @property
    def total_bytes(self) -> float:
        """Bytes of the whole model."""
        return self.rank_bytes + self.routed_bytes

    @property
    def rank_flops(self) -> float:
        """Operations per token in a rank's matrices; attention over the KV comes on top."""
        return 2.0 * (self._matrices + self._router + self._vocabulary)

    @property
    def expert_flops(self) -> float:
        """Operations per token in its K experts of every layer."""
        config = self.config
        return 2.0 * config.num_experts_per_tok * self._expert_parameters * config.num_moe_layers

    def kv_bytes(self, context_tokens: float) -> float:
        """Bytes of K and V of one sequence: sliding layers keep their window only."""
        return self._kv_position_bytes * self._kv_positions(context_tokens)

    def sliding_kv_bytes(self, context_tokens: float) -> float:
        """Those of them that are the sliding layers'."""
        return self._kv_position_bytes * self._sliding_positions(context_tokens)

    def attention_flops(self, context_tokens: float) -> float:
        """Operations of one decoded token over its KV."""
        per_position = 4.0 * self.config.num_attention_heads * self.config.head_dim
        return per_position * self._kv_positions(context_tokens)

    @property
    def _kv_position_bytes(self) -> int:
        return 2 * self.config.num_key_value_heads * self.config.head_dim * self.kv_element_bytes

    @property
    def _num_global(self) -> int:
        return sum(self.config.is_global(i) for i in range(self.config.num_hidden_layers))

    def _kv_positions(self, context_tokens: float) -> float:
        return self._num_global * context_tokens + self._sliding_positions(context_tokens)

    def _sliding_positions(self, context_tokens: float) -> float:
        num_sliding = self.config.num_hidden_layers - self._num_global
        return num_sliding * min(context_tokens, self.config.sliding_window)

    @property
    def _expert_parameters(self) -> int:
        return 3 * self.config.hidden_size * self.config.moe_intermediate_size

    @property
    def _vocabulary(self) -> int:
        return self.config.vocab_size * self.config.hidden_size

    @property
    def _router(self) -> int:
        return self.config.num_moe_layers * self.config.num_experts * self.config.hidden_size

    @property
    def _matrices(self) -> int:
        """Weights of attention, dense layers and shared experts."""
        config = self.config
        heads = 3 * config.num_attention_heads + 2 * config.num_key_value_heads
        attention = config.num_hidden_layers * heads * config.head_dim * config.hidden_size
        dense = config.num_dense_layers * 3 * config.hidden_size * config.intermediate_size
        shared = config.num_moe_layers * 3 * config.hidden_size * config.shared_intermediate_size
        return attention + dense + shared
