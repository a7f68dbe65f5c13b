"""The model in the plainest form: a whole sequence, no cache, transformers' operation order.

It exists to be compared with: `torch.equal` to transformers' eager model, and the yardstick of the
serving path. T tokens, V vocabulary, D hidden, H query heads, K KV heads (or top-k slots), d
head_dim, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.model_config import AfmoeConfig
from cluster.torch_dtypes import TORCH_DTYPES
from cluster.types import ComputeDtype
from experts.checkpoint import Checkpoint
from experts.tensor_names import swiglu_names, tensor_shapes


@dataclass(frozen=True)
class OracleWeights:
    """All tensors of a checkpoint, in the compute dtype."""

    config: AfmoeConfig
    tensors: Mapping[str, Tensor]

    @classmethod
    def load(cls, checkpoint: Checkpoint | Path, dtype: ComputeDtype = "float32") -> OracleWeights:
        if isinstance(checkpoint, Path):
            checkpoint = Checkpoint.open(str(checkpoint))
        tensors = {
            name: checkpoint.tensor(name, shape).to(TORCH_DTYPES[dtype])
            for name, shape in tensor_shapes(checkpoint.config)
        }
        return cls(checkpoint.config, tensors)

    def swiglu(self, prefix: str) -> tuple[Tensor, Tensor, Tensor]:
        gate, up, down = (self.tensors[name] for name in swiglu_names(prefix))
        return gate, up, down


@dataclass(frozen=True)
class OracleResult:
    """What one whole-sequence forward gives."""

    logits_TV: Tensor
    topk_ids: tuple[Tensor, ...]
    """(T, K) of each MoE layer, best biased score first; compare as sets per token."""
    topk_weights: tuple[Tensor, ...]
    """(T, K) of each MoE layer, in the slots of `topk_ids`."""


@torch.no_grad()
def oracle_forward(
    model: OracleWeights | Checkpoint | Path, ids: Sequence[int] | Tensor
) -> OracleResult:
    """Run one sequence. A checkpoint is loaded as float32; load `OracleWeights` once to reuse."""
    weights = model if isinstance(model, OracleWeights) else OracleWeights.load(model)
    config, tensors = weights.config, weights.tensors
    ids_T = torch.as_tensor(ids, dtype=torch.int64)
    x = F.embedding(ids_T[None], tensors["model.embed_tokens.weight"])
    if config.mup_enabled:
        x = x * (config.hidden_size**0.5)
    rope = _rope(config, len(ids_T), x.dtype)
    routing: list[tuple[Tensor, Tensor]] = []
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"

        def norm(name: str, value: Tensor, prefix: str = prefix) -> Tensor:
            return _rms_norm(value, tensors[f"{prefix}.{name}.weight"], config.rms_norm_eps)

        attended = _attention(weights, layer, norm("input_layernorm", x), rope)
        x = x + norm("post_attention_layernorm", attended)
        mlp_in = norm("pre_mlp_layernorm", x)
        if layer < config.num_dense_layers:
            mlp_out = _mlp(mlp_in, *weights.swiglu(f"{prefix}.mlp"))
        else:
            mlp_out = _moe(weights, f"{prefix}.mlp", mlp_in, routing)
        x = x + norm("post_mlp_layernorm", mlp_out)
    x = _rms_norm(x, tensors["model.norm.weight"], config.rms_norm_eps)
    logits_TV = F.linear(x, tensors["lm_head.weight"])[0]
    return OracleResult(
        logits_TV,
        topk_ids=tuple(ids_TK for ids_TK, _ in routing),
        topk_weights=tuple(weights_TK for _, weights_TK in routing),
    )


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (weight * wide).to(x.dtype)


def _rope(config: AfmoeConfig, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cos and sin, (1, T, d) each."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
    angles = torch.arange(length)[None, :, None].float() * (1.0 / (config.rope_theta**exponents))
    doubled = torch.cat((angles, angles), dim=-1)
    return doubled.cos().to(dtype), doubled.sin().to(dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return (x * cos[:, None]) + (turned * sin[:, None])


def _attention(
    weights: OracleWeights, layer: int, x: Tensor, rope: tuple[Tensor, Tensor]
) -> Tensor:
    config, prefix = weights.config, f"model.layers.{layer}.self_attn"
    length, group = x.shape[1], config.num_attention_heads // config.num_key_value_heads

    def project(name: str) -> Tensor:
        return F.linear(x, weights.tensors[f"{prefix}.{name}.weight"])

    def heads(name: str) -> Tensor:
        return project(name).view(1, length, -1, config.head_dim)

    def normed(name: str) -> Tensor:
        gain = weights.tensors[f"{prefix}.{name}_norm.weight"]
        return _rms_norm(heads(f"{name}_proj"), gain, config.rms_norm_eps).transpose(1, 2)

    query, key, value = normed("q"), normed("k"), heads("v_proj").transpose(1, 2)
    if not config.is_global(layer):
        query, key = _rotate(query, *rope), _rotate(key, *rope)
    key, value = (kv.repeat_interleave(group, dim=1) for kv in (key, value))
    scores = torch.matmul(query, key.transpose(2, 3)) * config.head_dim**-0.5
    scores = scores + _mask(config, layer, length, x.dtype)
    probabilities = torch.softmax(scores, dim=-1, dtype=torch.float32).to(x.dtype)
    mixed = torch.matmul(probabilities, value).transpose(1, 2).reshape(1, length, -1)
    gated = mixed * torch.sigmoid(project("gate_proj"))
    return F.linear(gated, weights.tensors[f"{prefix}.o_proj.weight"])


def _mask(config: AfmoeConfig, layer: int, length: int, dtype: torch.dtype) -> Tensor:
    """Return the (T, T) additive mask: keys s <= p, in sliding layers also s > p - window."""
    query, key = torch.arange(length)[:, None], torch.arange(length)[None, :]
    allowed = key <= query
    if not config.is_global(layer):
        allowed &= key > query - config.sliding_window
    return torch.where(allowed, 0.0, torch.finfo(dtype).min).to(dtype)


def _mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def _moe(
    weights: OracleWeights, prefix: str, x: Tensor, routing: list[tuple[Tensor, Tensor]]
) -> Tensor:
    config, flat_TD = weights.config, x[0]
    logits_TE = F.linear(flat_TD, weights.tensors[f"{prefix}.router.gate.weight"])
    scores_TE = torch.sigmoid(logits_TE.to(torch.float32))
    biased_TE = scores_TE + weights.tensors[f"{prefix}.expert_bias"]
    ids_TK = torch.topk(biased_TE, k=config.num_experts_per_tok, dim=1).indices
    weights_TK = scores_TE.gather(dim=1, index=ids_TK)
    weights_TK = weights_TK / (weights_TK.sum(dim=-1, keepdim=True) + 1e-20)
    weights_TK = weights_TK * config.route_scale
    routing.append((ids_TK, weights_TK))

    routed_TD = torch.zeros_like(flat_TD)
    for expert in sorted(set(ids_TK.flatten().tolist())):
        slot, token = torch.where(expert == ids_TK.T)
        gate, up, down = weights.swiglu(f"{prefix}.experts.{expert}")
        gate_out, up_out = F.linear(flat_TD[token], torch.cat((gate, up))).chunk(2, dim=-1)
        out = F.linear(F.silu(gate_out) * up_out, down) * weights_TK[token, slot, None]
        routed_TD.index_add_(0, token, out.to(routed_TD.dtype))
    shared_TD = _mlp(flat_TD, *weights.swiglu(f"{prefix}.shared_experts"))
    return (shared_TD + routed_TD)[None]
