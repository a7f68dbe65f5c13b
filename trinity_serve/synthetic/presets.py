"""Shapes to write: a demo, the two that speed is compared on, and Trinity's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from cluster.model_config import AfmoeConfig, LayerType


def every_fourth_global(num_layers: int) -> tuple[LayerType, ...]:
    """Return Trinity's pattern: three sliding layers, one global, repeated."""
    return tuple(
        LayerType.GLOBAL if (layer + 1) % 4 == 0 else LayerType.SLIDING
        for layer in range(num_layers)
    )


def slice_of(
    config: AfmoeConfig, num_layers: int, num_dense_layers: int, num_experts: int | None = None
) -> AfmoeConfig:
    """Return `config` with fewer layers (and experts), every matrix of its true shape."""
    return replace(
        config,
        num_hidden_layers=num_layers,
        num_dense_layers=num_dense_layers,
        num_experts=num_experts or config.num_experts,
        layer_types=every_fourth_global(num_layers),
    )


_LARGE = AfmoeConfig(
    vocab_size=200_192,
    hidden_size=3072,
    intermediate_size=12_288,
    moe_intermediate_size=3072,
    num_hidden_layers=60,
    num_dense_layers=6,
    num_attention_heads=48,
    num_key_value_heads=8,
    head_dim=128,
    num_experts=256,
    num_experts_per_tok=4,
    num_shared_experts=1,
    route_scale=2.448,
    rms_norm_eps=1e-5,
    rope_theta=10_000.0,
    sliding_window=4096,
    max_position_embeddings=262_144,
    mup_enabled=True,
    layer_types=every_fourth_global(60),
    dtype="bfloat16",
    bos_token_id=0,
    eos_token_id=(3,),
)

_MINI = replace(
    _LARGE,
    hidden_size=2048,
    intermediate_size=6144,
    moe_intermediate_size=1024,
    num_hidden_layers=32,
    num_dense_layers=2,
    num_attention_heads=32,
    num_key_value_heads=4,
    num_experts=128,
    num_experts_per_tok=8,
    route_scale=2.826,
    sliding_window=2048,
    max_position_embeddings=131_072,
    layer_types=every_fourth_global(32),
)

_NANO = replace(
    _MINI,
    hidden_size=1024,
    intermediate_size=3072,
    moe_intermediate_size=256,
    num_hidden_layers=56,
    num_attention_heads=8,
    num_key_value_heads=2,
    layer_types=every_fourth_global(56),
)

_TINY = replace(
    _LARGE,
    vocab_size=4096,
    hidden_size=256,
    intermediate_size=768,
    moe_intermediate_size=64,
    num_hidden_layers=8,
    num_dense_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=32,
    sliding_window=128,
    max_position_embeddings=65_536,
    layer_types=every_fourth_global(8),
)

_SMALL = replace(
    _TINY,
    hidden_size=1024,
    intermediate_size=3072,
    moe_intermediate_size=128,
    num_hidden_layers=12,
    num_attention_heads=16,
    num_key_value_heads=4,
    head_dim=64,
    sliding_window=1024,
    layer_types=every_fourth_global(12),
)

_DEMO = replace(
    _TINY,
    hidden_size=128,
    intermediate_size=384,
    moe_intermediate_size=32,
    sliding_window=64,
    max_position_embeddings=32_768,
)

PRESETS: Mapping[str, AfmoeConfig] = MappingProxyType(
    {
        "demo": _DEMO,
        "tiny": _TINY,
        "small": _SMALL,
        "nano": _NANO,
        "nano-slice": slice_of(_NANO, num_layers=4, num_dense_layers=1),
        "mini": _MINI,
        "mini-slice": slice_of(_MINI, num_layers=4, num_dense_layers=1),
        "large": _LARGE,
        "large-slice": slice_of(_LARGE, num_layers=4, num_dense_layers=1),
    }
)
"""Name -> configuration. `large-slice` is 46 GB: one expert layer of Large alone is 14.5 GB;
`slice_of` makes thinner ones."""
