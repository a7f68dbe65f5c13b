"""The shape of an AFMoE model, read strictly from a checkpoint's `config.json`.

transformers' own class has defaults that are not Trinity's (64 experts, window 1024, …), so a
missing key would silently make another model: here every key that shapes the model is required,
and whatever the code does not compute is refused by name. Keys that transformers hard-codes and
leaves out when saving (`score_func`, `route_norm`, the group keys) may be absent. How the
weights are stored (`quantization_config`) is read by `experts.quantised`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cluster.errors import ConfigError
from cluster.json_fields import JsonFields, load_json_object
from cluster.types import COMPUTE_DTYPES, ComputeDtype


class LayerType(StrEnum):
    """Which keys a layer's attention sees."""

    SLIDING = "sliding_attention"
    """The last `sliding_window` positions, rotary embedding."""
    GLOBAL = "full_attention"
    """All earlier positions, no position signal."""


@dataclass(frozen=True)
class AfmoeConfig:
    """Field names are config.json's own; values are checked when read, not when constructed."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_dense_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_experts: int
    num_experts_per_tok: int
    num_shared_experts: int
    route_scale: float
    rms_norm_eps: float
    rope_theta: float
    sliding_window: int
    max_position_embeddings: int
    mup_enabled: bool
    layer_types: tuple[LayerType, ...]
    dtype: ComputeDtype
    """What the checkpoint's tensors are stored in (`expert_bias` may be float32 all the same)."""
    bos_token_id: int | None = None
    eos_token_id: tuple[int, ...] | None = None

    @classmethod
    def from_json(cls, path: Path) -> AfmoeConfig:
        """Read `config.json`. Raises ConfigError as `from_dict`, and for an unreadable file."""
        return cls.from_dict(load_json_object(path), str(path))

    @classmethod
    def from_dict(cls, mapping: Mapping[str, object], source: str) -> AfmoeConfig:
        """Build from config.json's content; `source` names it in errors.

        Raises:
            ConfigError: a key is missing, ill-typed, contradicts another, or asks for arithmetic
                that is not implemented.
        """
        fields = JsonFields(mapping, source)
        _refuse_unsupported(fields)
        num_layers = fields.integer("num_hidden_layers")
        config = cls(
            vocab_size=fields.integer("vocab_size"),
            hidden_size=fields.integer("hidden_size"),
            intermediate_size=fields.integer("intermediate_size"),
            moe_intermediate_size=fields.integer("moe_intermediate_size"),
            num_hidden_layers=num_layers,
            num_dense_layers=fields.integer("num_dense_layers", minimum=0),
            num_attention_heads=fields.integer("num_attention_heads"),
            num_key_value_heads=fields.integer("num_key_value_heads"),
            head_dim=fields.integer("head_dim"),
            num_experts=fields.integer("num_experts"),
            num_experts_per_tok=fields.integer("num_experts_per_tok"),
            num_shared_experts=fields.integer("num_shared_experts"),
            route_scale=fields.positive("route_scale"),
            rms_norm_eps=fields.positive("rms_norm_eps"),
            rope_theta=_rope_theta(fields),
            sliding_window=fields.integer("sliding_window"),
            max_position_embeddings=fields.integer("max_position_embeddings"),
            mup_enabled=fields.flag("mup_enabled"),
            layer_types=_layer_types(fields, num_layers),
            dtype=_dtype(fields),
            bos_token_id=fields.token_id("bos_token_id"),
            eos_token_id=fields.token_ids("eos_token_id"),
        )
        config._check_relations(fields)
        return config

    def _check_relations(self, fields: JsonFields) -> None:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if heads % kv_heads:
            problem = f"is {kv_heads} with num_attention_heads {heads}"
            raise fields.error("num_key_value_heads", problem, f"a divisor of {heads}")
        if self.head_dim % 2:
            raise fields.error("head_dim", f"is {self.head_dim}", "an even number (rotary halves)")
        if self.num_experts_per_tok > self.num_experts:
            problem = f"is {self.num_experts_per_tok} with num_experts {self.num_experts}"
            raise fields.error("num_experts_per_tok", problem, f"1 to {self.num_experts}")
        if self.num_dense_layers >= self.num_hidden_layers:
            problem = f"is {self.num_dense_layers} of {self.num_hidden_layers} layers"
            supported = f"0 to {self.num_hidden_layers - 1} (at least one layer with experts)"
            raise fields.error("num_dense_layers", problem, supported)
        for key, ids in (("bos_token_id", self.bos_token_ids), ("eos_token_id", self.eos_token_id)):
            if any(token >= self.vocab_size for token in ids or ()):
                raise fields.error(key, f"is {ids}", f"ids below vocab_size {self.vocab_size}")

    @property
    def bos_token_ids(self) -> tuple[int, ...]:
        """`bos_token_id` as a tuple of none or one."""
        return () if self.bos_token_id is None else (self.bos_token_id,)

    @property
    def moe_layers(self) -> range:
        """Absolute indices of the layers with experts."""
        return range(self.num_dense_layers, self.num_hidden_layers)

    @property
    def num_moe_layers(self) -> int:
        """How many layers have experts."""
        return len(self.moe_layers)

    @property
    def shared_intermediate_size(self) -> int:
        """Width of the shared experts, which are one SwiGLU."""
        return self.moe_intermediate_size * self.num_shared_experts

    def is_global(self, layer: int) -> bool:
        """Whether (absolute) layer `layer` attends to all earlier positions, without rotary."""
        return self.layer_types[layer] is LayerType.GLOBAL

    def fingerprint(self, dtype: ComputeDtype) -> bytes:
        """Return 16 bytes that two processes must share before a row travels between them.

        Covers every field that enters the arithmetic, and the compute dtype; not the admission
        limit, the stored dtype or the token ids. It does not cover the weights' values:
        `Checkpoint.fingerprint` does.
        """
        shape = {
            name: value
            for name, value in vars(self).items()
            if name not in ("max_position_embeddings", "dtype", "bos_token_id", "eos_token_id")
        }
        canonical = json.dumps({**shape, "compute_dtype": dtype}, sort_keys=True)
        return hashlib.blake2b(canonical.encode(), digest_size=16).digest()


def _refuse_unsupported(fields: JsonFields) -> None:
    fields.refuse_unless("model_type", "afmoe", required=True)
    fields.refuse_unless("hidden_act", "silu", required=True)
    fields.refuse_unless("tie_word_embeddings", False, required=True)
    fields.refuse_unless("score_func", "sigmoid")
    fields.refuse_unless("route_norm", True)
    for key in ("n_group", "topk_group", "num_expert_groups", "num_limited_groups"):
        fields.refuse_unless(key, 1)
    fields.refuse_unless("attention_bias", False)


def _rope_theta(fields: JsonFields) -> float:
    """Return the one theta, from `rope_theta` or `rope_parameters.rope_theta` (or both, equal)."""
    found = [fields.positive("rope_theta")] if fields.has("rope_theta") else []
    for key in ("rope_scaling", "rope_parameters"):
        if not fields.has(key):
            continue
        inner = fields.mapping[key]
        if not isinstance(inner, dict):
            raise fields.error(key, f"is {inner!r}", "null or an object with rope_type default")
        found += _default_rope(JsonFields(inner, f"{fields.source}: {key}"))
    if not found:
        raise fields.error("rope_theta", "is missing", "rope_theta or rope_parameters.rope_theta")
    if len(set(found)) > 1:
        raise fields.error("rope_theta", f"has values {found}", "one value")
    return found[0]


def _default_rope(inner: JsonFields) -> list[float]:
    for key in ("rope_type", "type"):
        inner.refuse_unless(key, "default")
    unknown = sorted(set(inner.mapping) - {"rope_type", "type", "rope_theta"})
    if unknown:
        problem = f"is {inner.mapping[unknown[0]]!r}"
        raise inner.error(unknown[0], problem, "rope_type default without scaling keys")
    return [inner.positive("rope_theta")] if inner.has("rope_theta") else []


def _layer_types(fields: JsonFields, num_layers: int) -> tuple[LayerType, ...]:
    """Return `layer_types`, or when absent: every n-th layer global."""
    if not fields.has("layer_types"):
        every = fields.integer("global_attn_every_n_layers")
        globals_ = [(layer + 1) % every == 0 for layer in range(num_layers)]
        return tuple(LayerType.GLOBAL if is_ else LayerType.SLIDING for is_ in globals_)
    entries = fields.mapping["layer_types"]
    if not isinstance(entries, list) or len(entries) != num_layers:
        length = f"{len(entries)} entries" if isinstance(entries, list) else repr(entries)
        supported = f"a list of num_hidden_layers = {num_layers} entries"
        raise fields.error("layer_types", f"has {length}", supported)
    allowed = [layer_type.value for layer_type in LayerType]
    for layer, entry in enumerate(entries):
        if entry not in allowed:
            raise fields.error(f"layer_types[{layer}]", f"is {entry!r}", " or ".join(allowed))
    return tuple(LayerType(entry) for entry in entries)


def _dtype(fields: JsonFields) -> ComputeDtype:
    key = "dtype" if fields.has("dtype") else "torch_dtype"
    if not fields.has(key):
        raise fields.error("dtype", "is missing", "dtype or torch_dtype")
    value = str(fields.mapping[key])
    for name in COMPUTE_DTYPES:
        if value == name:
            return name
    raise ConfigError(fields.source, key, f"is {value!r}", " or ".join(COMPUTE_DTYPES))
