"""What a quantised synthetic checkpoint is to be, and the configuration that says so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from cluster.errors import ConfigError
from cluster.model_config import AfmoeConfig
from experts.quantised.nvfp4 import GROUP_SIZE
from experts.quantised.scheme import BLOCK, Form

_INT4_GROUP = 128


class Scope(StrEnum):
    """Which linears are quantised; never router and output head."""

    ALL = "all"
    MLPS = "mlps"
    """Dense layers, shared and routed experts."""
    EXPERTS = "experts"
    """Routed experts only."""


_PUBLISHED_SCOPE = {
    Form.FP8: Scope.ALL,
    Form.FP8_DYNAMIC: Scope.ALL,
    Form.FP8_BLOCK: Scope.ALL,
    Form.W4A16: Scope.MLPS,
    Form.NVFP4: Scope.MLPS,
    Form.NVFP4_MODELOPT: Scope.EXPERTS,
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A published form, and what its publishers chose within it."""

    form: Form
    scope: Scope | None = None
    """None: as the form is published for Trinity."""
    scale_dtype: str = "BF16"
    """Of FP8 and W4A16; ``F32`` or ``BF16``, and ``F8_E8M0`` for blocks."""

    @property
    def quantised_scope(self) -> Scope:
        """The scope that counts."""
        return self.scope or _PUBLISHED_SCOPE[self.form]


def quantization_config(recipe: Recipe, config: AfmoeConfig) -> dict[str, object]:
    """Return config.json's block for it. Raises ConfigError when no group size fits the widths."""
    if recipe.form is Form.NVFP4_MODELOPT:
        return _modelopt(recipe, config)
    weights = _weights(recipe, config)
    group = {
        "targets": ["Linear"],
        "weights": {"symmetric": True, "dynamic": False, "actorder": None, **weights},
        "input_activations": _INPUTS[recipe.form],
        "output_activations": None,
        "format": _FORMATS[recipe.form],
    }
    return {
        "quant_method": "compressed-tensors",
        "format": _FORMATS[recipe.form],
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": _ignored(recipe, config),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.20.0",
    }


def hf_quant_config(block: Mapping[str, object]) -> dict[str, object]:
    """Return ModelOpt's file of its own, which says the same as its block in config.json."""
    quantization = {
        "quant_algo": block["quant_algo"],
        "kv_cache_quant_algo": None,
        "group_size": GROUP_SIZE,
        "exclude_modules": block["ignore"],
    }
    return {"producer": block["producer"], "quantization": quantization}


_FORMATS = {
    Form.FP8: "float-quantized",
    Form.FP8_DYNAMIC: "float-quantized",
    Form.FP8_BLOCK: "float-quantized",
    Form.W4A16: "pack-quantized",
    Form.NVFP4: "nvfp4-pack-quantized",
}
_FP8_INPUT: Mapping[str, object] = {"num_bits": 8, "type": "float", "symmetric": True}
_NVFP4_WEIGHTS: Mapping[str, object] = {
    "num_bits": 4,
    "type": "float",
    "strategy": "tensor_group",
    "group_size": GROUP_SIZE,
    "scale_dtype": "torch.float8_e4m3fn",
}
_INPUTS: Mapping[Form, Mapping[str, object] | None] = {
    Form.FP8: {**_FP8_INPUT, "strategy": "tensor", "dynamic": False},
    Form.FP8_DYNAMIC: {**_FP8_INPUT, "strategy": "token", "dynamic": True},
    Form.FP8_BLOCK: {**_FP8_INPUT, "strategy": "group", "group_size": BLOCK, "dynamic": True},
    Form.W4A16: None,
    Form.NVFP4: {**_NVFP4_WEIGHTS, "symmetric": True, "dynamic": "local"},
}


def _weights(recipe: Recipe, config: AfmoeConfig) -> Mapping[str, object]:
    fp8 = {"num_bits": 8, "type": "float"}
    match recipe.form:
        case Form.FP8:
            return {**fp8, "strategy": "tensor"}
        case Form.FP8_DYNAMIC:
            return {**fp8, "strategy": "channel"}
        case Form.FP8_BLOCK:
            return {**fp8, "strategy": "block", "block_structure": [BLOCK, BLOCK]}
        case Form.W4A16:
            size = _int4_group(config)
            return {"num_bits": 4, "type": "int", "strategy": "group", "group_size": size}
        case _:
            return _NVFP4_WEIGHTS


def _int4_group(config: AfmoeConfig) -> int:
    """Return 128, or what a small preset's widths are multiples of."""
    query = config.num_attention_heads * config.head_dim
    widths = (config.hidden_size, config.intermediate_size, config.moe_intermediate_size, query)
    size = math.gcd(_INT4_GROUP, config.shared_intermediate_size, *widths)
    if size % 8:
        problem = f"have the common divisor {size} with {_INT4_GROUP}"
        raise ConfigError("synthetic checkpoint", "widths", problem, "a multiple of 8 for w4a16")
    return size


def _ignored(recipe: Recipe, config: AfmoeConfig) -> list[str]:
    ignored = ["lm_head", r"re:.*mlp\.router\.gate$"]
    if recipe.quantised_scope is not Scope.ALL:
        ignored.append(r"re:.*self_attn\..*")
    if recipe.quantised_scope is Scope.EXPERTS:
        ignored.append(r"re:.*\.shared_experts\..*")
        ignored += [
            f"model.layers.{layer}.mlp.{part}_proj"
            for layer in range(config.num_dense_layers)
            for part in ("gate", "up", "down")
        ]
    return ignored


def _modelopt(recipe: Recipe, config: AfmoeConfig) -> dict[str, object]:
    ignored = ["lm_head", "model.layers.*.mlp.router*"]
    if recipe.quantised_scope is not Scope.ALL:
        ignored.append("model.layers.*.self_attn*")
    if recipe.quantised_scope is Scope.EXPERTS:
        ignored.append("*.shared_experts.*")
        ignored += [f"model.layers.{layer}.mlp" for layer in range(config.num_dense_layers)]
    sizes = {"num_bits": 4, "type": "float", "group_size": GROUP_SIZE, "dynamic": False}
    group = {"targets": ["Linear"], "weights": sizes, "input_activations": sizes}
    return {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "config_groups": {"group_0": group},
        "ignore": ignored,
        "producer": {"name": "modelopt", "version": "0.41.0"},
    }
