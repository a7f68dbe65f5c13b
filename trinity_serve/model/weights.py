"""The rank's share of a checkpoint: everything but the routed experts, in the kernels' own form.

Names and shapes: facts of the published checkpoints, three different things are called gate_proj.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cluster.model_config import AfmoeConfig
from cluster.torch_dtypes import TORCH_DTYPES
from cluster.types import ComputeDtype
from experts.kernels.base import ExpertKernels, ExpertTable, LinearWeight

CPU = torch.device("cpu")


class TensorReader(Protocol):
    """The part of `experts.checkpoint.Checkpoint` that is needed here."""

    @property
    def config(self) -> AfmoeConfig:
        """The model's shape."""
        ...

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return one tensor, checked against `shape`."""
        ...


@dataclass(frozen=True)
class AttentionWeights:
    """One layer's attention; q, k, v and gate projections are one matrix."""

    qkvg: LinearWeight
    q_norm_d: Tensor
    k_norm_d: Tensor
    o: LinearWeight


@dataclass(frozen=True)
class MoeWeights:
    """A MoE layer's router (fp32) and shared experts (one SwiGLU of their joint width)."""

    router: LinearWeight
    expert_bias_E: Tensor
    shared: ExpertTable


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer: four norms, attention, and a dense MLP or a MoE."""

    input_norm_D: Tensor
    post_attention_norm_D: Tensor
    pre_mlp_norm_D: Tensor
    post_mlp_norm_D: Tensor
    attention: AttentionWeights
    mlp: ExpertTable | MoeWeights


@dataclass(frozen=True)
class ModelWeights:
    """All that an attention rank holds."""

    embedding_VD: Tensor
    layers: tuple[LayerWeights, ...]
    final_norm_D: Tensor
    lm_head: LinearWeight


def load_weights(
    reader: TensorReader,
    kernels: ExpertKernels,
    dtype: ComputeDtype,
    device: torch.device = CPU,
) -> ModelWeights:
    """Read and pack everything but the routed experts; `device` is where the other tensors go.

    Raises `CheckpointError` for a missing or wrong-shaped tensor.
    """
    return _Loader(reader, kernels, TORCH_DTYPES[dtype], device).load()


@dataclass(frozen=True)
class _Loader:
    reader: TensorReader
    kernels: ExpertKernels
    dtype: torch.dtype
    device: torch.device

    @property
    def config(self) -> AfmoeConfig:
        return self.reader.config

    def load(self) -> ModelWeights:
        config = self.config
        vocab_shape = (config.vocab_size, config.hidden_size)
        return ModelWeights(
            embedding_VD=self._kept("model.embed_tokens.weight", *vocab_shape),
            layers=tuple(self._layer(index) for index in range(config.num_hidden_layers)),
            final_norm_D=self._kept("model.norm.weight", config.hidden_size),
            lm_head=self.kernels.pack_linear(self._tensor("lm_head.weight", *vocab_shape)),
        )

    def _tensor(self, name: str, *shape: int) -> Tensor:
        return self.reader.tensor(name, shape).to(self.dtype).contiguous()

    def _kept(self, name: str, *shape: int) -> Tensor:
        return self._tensor(name, *shape).to(self.device)

    def _layer(self, index: int) -> LayerWeights:
        prefix, d = f"model.layers.{index}.", self.config.hidden_size
        return LayerWeights(
            input_norm_D=self._kept(prefix + "input_layernorm.weight", d),
            post_attention_norm_D=self._kept(prefix + "post_attention_layernorm.weight", d),
            pre_mlp_norm_D=self._kept(prefix + "pre_mlp_layernorm.weight", d),
            post_mlp_norm_D=self._kept(prefix + "post_mlp_layernorm.weight", d),
            attention=self._attention(prefix + "self_attn."),
            mlp=(
                self._moe(prefix + "mlp.")
                if index in self.config.moe_layers
                else self._swiglu(prefix + "mlp.", self.config.intermediate_size)
            ),
        )

    def _attention(self, prefix: str) -> AttentionWeights:
        config = self.config
        q_width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        parts = {"q": q_width, "k": kv_width, "v": kv_width, "gate": q_width}
        qkvg = torch.cat(
            [
                self._tensor(f"{prefix}{part}_proj.weight", width, config.hidden_size)
                for part, width in parts.items()
            ]
        )
        return AttentionWeights(
            qkvg=self.kernels.pack_linear(qkvg),
            q_norm_d=self._kept(prefix + "q_norm.weight", config.head_dim),
            k_norm_d=self._kept(prefix + "k_norm.weight", config.head_dim),
            o=self.kernels.pack_linear(
                self._tensor(prefix + "o_proj.weight", config.hidden_size, q_width)
            ),
        )

    def _swiglu(self, prefix: str, width: int) -> ExpertTable:
        d = self.config.hidden_size
        table = self.kernels.new_table(1, d, width, self.dtype)
        table.put(
            0,
            self._tensor(prefix + "gate_proj.weight", width, d),
            self._tensor(prefix + "up_proj.weight", width, d),
            self._tensor(prefix + "down_proj.weight", d, width),
        )
        return table

    def _moe(self, prefix: str) -> MoeWeights:
        config = self.config
        router_shape = (config.num_experts, config.hidden_size)
        router_ED = self.reader.tensor(prefix + "router.gate.weight", router_shape)
        bias_E = self.reader.tensor(prefix + "expert_bias", (config.num_experts,))
        shared_width = config.moe_intermediate_size * config.num_shared_experts
        return MoeWeights(
            # fp32 whatever the compute dtype: a rounded logit moves the choice of experts.
            router=self.kernels.pack_linear(router_ED.float().contiguous()),
            expert_bias_E=bias_E.float().contiguous().to(self.device),
            shared=self._swiglu(prefix + "shared_experts.", shared_width),
        )
