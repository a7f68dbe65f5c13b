"""What a model weighs and where it fits, from its configuration alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.model_config import AfmoeConfig
from cluster.types import ComputeDtype, ShardSlice
from experts.checkpoint import Checkpoint
from experts.tensor_names import Shape, tensor_shapes

_ITEM_BYTES: dict[ComputeDtype, int] = {"float32": 4, "bfloat16": 2}

DEFAULT_SHARD_COUNTS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class ComponentSize:
    """One kind of tensor over all layers, e.g. ``routed experts``."""

    name: str
    num_parameters: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class ShardFit:
    """What each of `num_shards` expert shards holds. Sizes are those of the largest slice."""

    num_shards: int
    experts_per_layer: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """Sizes of one checkpoint in its stored dtype (`expert_bias` counted as float32)."""

    config: AfmoeConfig
    components: tuple[ComponentSize, ...]
    bytes_per_expert: int
    rank_bytes: int
    """Everything but the routed experts: what each attention rank holds."""
    active_parameters: int
    """Read per token, the embedding table left out."""
    global_kv_bytes_per_token: int
    """K and V of all global layers, per token of context."""
    sliding_kv_bytes_per_sequence: int
    """K and V of all sliding layers with a full window, whatever the context's length."""
    shards: tuple[ShardFit, ...]

    @property
    def num_parameters(self) -> int:
        """All parameters."""
        return sum(component.num_parameters for component in self.components)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(component.num_bytes for component in self.components)


def describe(
    model: Checkpoint | AfmoeConfig, shard_counts: Sequence[int] = DEFAULT_SHARD_COUNTS
) -> ModelDescription:
    """Count without reading a tensor. Shard counts above the number of experts are left out."""
    config = model.config if isinstance(model, Checkpoint) else model
    components = _components(config)
    routed = next(part for part in components if part.name == _ROUTED)
    embedding = next(part for part in components if part.name == "embedding")
    expert_parameters = 3 * config.hidden_size * config.moe_intermediate_size
    expert_bytes = expert_parameters * _ITEM_BYTES[config.dtype]
    num_parameters = sum(part.num_parameters for part in components)
    active_experts = config.num_moe_layers * config.num_experts_per_tok
    kv_bytes = 2 * config.num_key_value_heads * config.head_dim * _ITEM_BYTES[config.dtype]
    num_global = sum(config.is_global(layer) for layer in range(config.num_hidden_layers))
    return ModelDescription(
        config=config,
        components=components,
        bytes_per_expert=expert_bytes,
        rank_bytes=sum(part.num_bytes for part in components) - routed.num_bytes,
        active_parameters=num_parameters
        - routed.num_parameters
        - embedding.num_parameters
        + active_experts * expert_parameters,
        global_kv_bytes_per_token=num_global * kv_bytes,
        sliding_kv_bytes_per_sequence=(config.num_hidden_layers - num_global)
        * config.sliding_window
        * kv_bytes,
        shards=tuple(
            _shard_fit(config, count, expert_bytes)
            for count in shard_counts
            if count <= config.num_experts
        ),
    )


def _shard_fit(config: AfmoeConfig, count: int, expert_bytes: int) -> ShardFit:
    slices = (ShardSlice(index, count).experts(config.num_experts) for index in range(count))
    largest = max(len(experts) for experts in slices)
    return ShardFit(count, largest, largest * config.num_moe_layers * expert_bytes)


_ROUTED = "routed experts"
_PARTS = (
    (".mlp.experts.", _ROUTED),
    (".mlp.shared_experts.", "shared experts"),
    (".mlp.router.", "router"),
    (".mlp.expert_bias", "expert bias"),
    ("norm.weight", "norms"),
    (".self_attn.", "attention"),
    (".mlp.", "dense layers"),
    ("embed_tokens", "embedding"),
    ("lm_head", "output head"),
)
"""First match wins: q_norm and k_norm count as norms."""


def _components(config: AfmoeConfig) -> tuple[ComponentSize, ...]:
    sizes = {part: (0, 0) for _, part in _PARTS}
    for name, shape in tensor_shapes(config):
        part = next(part for pattern, part in _PARTS if pattern in name)
        parameters, num_bytes = sizes[part]
        sizes[part] = (parameters + math.prod(shape), num_bytes + _num_bytes(name, shape, config))
    return tuple(ComponentSize(part, *size) for part, size in sizes.items())


def _num_bytes(name: str, shape: Shape, config: AfmoeConfig) -> int:
    item_bytes = 4 if name.endswith(".expert_bias") else _ITEM_BYTES[config.dtype]
    return math.prod(shape) * item_bytes
