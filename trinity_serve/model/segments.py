"""The rank's work between two dispatches, in pieces that a backend may run as one call each.

T rows, D hidden, R rows whose logits are wanted, V vocabulary, K experts per token, N = T*K.

At a few rows per step a forward pass is some hundred small ops; a backend that fuses what lies
between two dispatches (one C call, one CUDA graph) plugs in here. `PlainSegments` is the meaning:
the ops one after the other. Fused or not, every row gets the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cluster.model_config import AfmoeConfig
from experts.kernels.base import ExpertKernels, ExpertTable
from trinity_serve.model.batch import ForwardBatch, Int64, KvView
from trinity_serve.model.kernels.base import AttentionShape, KvCache, ModelKernels
from trinity_serve.model.weights import LayerWeights, ModelWeights, MoeWeights


@dataclass(frozen=True)
class Pool:
    """The layers of one kind (global or sliding): their cache, and what attention needs beside."""

    cache: KvCache
    window: int | None
    rope: Tensor | None
    is_global: bool

    def view(self, batch: ForwardBatch) -> KvView:
        """Return where the batch's sequences keep K and V of these layers."""
        return batch.global_kv if self.is_global else batch.sliding_kv


@dataclass(frozen=True)
class LayerPlace:
    """Where a layer's K and V are: the pool, and the layer's number within it."""

    pool: Pool
    layer: int


@dataclass
class Rows:
    """The rows of one micro-batch on their way through the layers."""

    batch: ForwardBatch
    x_TD: Tensor
    """Residual stream."""
    normed_TD: Tensor
    """Input of the next sub-layer; kept until the next segment of these rows ends."""
    topk_weights_TK: Tensor | None = None
    shared_TD: Tensor | None = None
    native: Any = None
    """The backend's own state."""


class Segments(Protocol):
    """One backend's pieces of a forward pass. `layer` is the absolute index."""

    def start(self, batch: ForwardBatch) -> Rows:
        """Embed and norm: the input of layer 0's attention."""
        ...

    def attention(self, layer: int, rows: Rows) -> None:
        """Attention, residual and the norm before the MLP; writes K and V."""
        ...

    def dense(self, layer: int, rows: Rows) -> None:
        """A dense layer's MLP, residual and the next layer's norm."""
        ...

    def route(self, layer: int, rows: Rows) -> Int64:
        """Return topk_ids_TK of a MoE layer; the weights stay with `rows`."""
        ...

    def shared_expert(self, layer: int, rows: Rows) -> None:
        """Compute the shared expert, while the routed rows are away."""
        ...

    def finish_moe(
        self, layer: int, rows: Rows, expert_rows_ND: Tensor, row_of_slot_TK: Int64
    ) -> bool:
        """Combine, residual and the next layer's norm.

        Returns False, with `rows` as they were, when a combined row is not finite.
        """
        ...

    def logits(self, rows: Rows, rows_R: Int64) -> Tensor:
        """Return (R, V) float32 for these rows, after the last layer."""
        ...


class PlainSegments:
    """`Segments` as the ops of `ExpertKernels` and `ModelKernels`, one after the other."""

    def __init__(
        self,
        config: AfmoeConfig,
        weights: ModelWeights,
        kernels: tuple[ExpertKernels, ModelKernels],
        places: Sequence[LayerPlace],
    ) -> None:
        self.config = config
        self.weights = weights
        self.places = places
        self.shape = attention_shape(config)
        self._ops, self._model_ops = kernels
        self._eps = config.rms_norm_eps
        self._scale = math.sqrt(config.hidden_size) if config.mup_enabled else 1.0
        self.next_norms_LD = next_norms(weights)

    def start(self, batch: ForwardBatch) -> Rows:
        """See `Segments.start`."""
        first_norm_D = self.weights.layers[0].input_norm_D
        x_TD = self._model_ops.embed(batch.token_ids_T, self.weights.embedding_VD, self._scale)
        return Rows(batch, x_TD, self._model_ops.rms_norm(x_TD, first_norm_D, self._eps))

    def attention(self, layer: int, rows: Rows) -> None:
        """See `Segments.attention`."""
        weights, place, batch = self.weights.layers[layer], self.places[layer], rows.batch
        attention, pool = weights.attention, place.pool
        qkvg_TX = self._ops.linear(rows.normed_TD, attention.qkvg)
        view = pool.view(batch)
        q_TX = self._model_ops.write_kv(
            qkvg_TX,
            attention.q_norm_d,
            attention.k_norm_d,
            self.shape,
            batch.positions_T,
            pool.rope,
            view,
            pool.cache,
            place.layer,
        )
        gated_TX = self._model_ops.paged_attention(
            q_TX, qkvg_TX, self.shape, batch, view, pool.cache, place.layer, pool.window
        )
        branch_TD = self._ops.linear(gated_TX, attention.o)
        self._residual(rows, branch_TD, weights.post_attention_norm_D, weights.pre_mlp_norm_D)

    def dense(self, layer: int, rows: Rows) -> None:
        """See `Segments.dense`."""
        weights = self.weights.layers[layer]
        branch_TD = self.swiglu(rows.normed_TD, dense_mlp(weights))
        self._residual(rows, branch_TD, weights.post_mlp_norm_D, self.next_norms_LD[layer])

    def route(self, layer: int, rows: Rows) -> Int64:
        """See `Segments.route`."""
        weights = moe(self.weights.layers[layer])
        logits_TE = self._ops.linear(rows.normed_TD, weights.router, torch.float32)
        topk_ids, rows.topk_weights_TK = self._model_ops.gate_topk(
            logits_TE,
            weights.expert_bias_E,
            self.config.num_experts_per_tok,
            self.config.route_scale,
        )
        return topk_ids.cpu().numpy()

    def shared_expert(self, layer: int, rows: Rows) -> None:
        """See `Segments.shared_expert`."""
        rows.shared_TD = self.swiglu(rows.normed_TD, moe(self.weights.layers[layer]).shared)

    def finish_moe(
        self, layer: int, rows: Rows, expert_rows_ND: Tensor, row_of_slot_TK: Int64
    ) -> bool:
        """See `Segments.finish_moe`."""
        assert rows.topk_weights_TK is not None
        assert rows.shared_TD is not None
        branch_TD = self._model_ops.combine(
            expert_rows_ND.to(rows.shared_TD.device),
            row_of_slot_TK,
            rows.topk_weights_TK,
            rows.shared_TD,
        )
        if not bool(torch.isfinite(branch_TD).all()):
            return False
        weights = self.weights.layers[layer]
        self._residual(rows, branch_TD, weights.post_mlp_norm_D, self.next_norms_LD[layer])
        return True

    def logits(self, rows: Rows, rows_R: Int64) -> Tensor:
        """See `Segments.logits`."""
        last_RD = rows.normed_TD
        # A step of decodes wants every row; to gather them would be a copy, and a torch loop whose
        # threads wait for each other wherever something else has the cores.
        if len(rows_R) < rows.batch.num_rows:
            last_RD = last_RD[torch.from_numpy(rows_R)]
        return self._ops.linear(last_RD, self.weights.lm_head, torch.float32)

    def swiglu(self, x_TD: Tensor, table: ExpertTable) -> Tensor:
        """A dense MLP or shared expert: one group with every row."""
        num_rows = x_TD.shape[0]
        rows_N = np.arange(num_rows, dtype=np.int32)
        offsets = np.array([0, num_rows], dtype=np.int32)
        return self._ops.grouped_swiglu(x_TD, rows_N, _FIRST_EXPERT, offsets, table)

    def _residual(
        self, rows: Rows, branch_TD: Tensor, post_norm_D: Tensor, next_norm_D: Tensor
    ) -> None:
        rows.x_TD, rows.normed_TD = self._model_ops.residual_norm(
            rows.x_TD, branch_TD, post_norm_D, next_norm_D, self._eps
        )


_FIRST_EXPERT = np.zeros(1, dtype=np.int32)


def attention_shape(config: AfmoeConfig) -> AttentionShape:
    """Return what attention kernels need of a model."""
    return AttentionShape(
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.rms_norm_eps,
    )


def next_norms(weights: ModelWeights) -> list[Tensor]:
    """Return, by layer, the gain of the norm that follows it: the next layer's, or the final."""
    return [layer.input_norm_D for layer in weights.layers[1:]] + [weights.final_norm_D]


def moe(layer: LayerWeights) -> MoeWeights:
    """Return a MoE layer's router and shared expert."""
    assert isinstance(layer.mlp, MoeWeights)
    return layer.mlp


def dense_mlp(layer: LayerWeights) -> ExpertTable:
    """Return a dense layer's MLP."""
    assert not isinstance(layer.mlp, MoeWeights)
    return layer.mlp
