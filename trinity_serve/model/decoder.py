"""The forward pass of AFMoE over paged KV and expert shards.

T rows, D hidden, R rows whose logits are wanted, V vocabulary.

Source: transformers' AfmoeForCausalLM; tests/oracle holds this to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cluster.model_config import AfmoeConfig
from experts.kernels.base import ExpertKernels, ExpertTable
from trinity_serve.model.batch import ForwardBatch, KvView
from trinity_serve.model.kernels.base import AttentionShape, KvCache, ModelKernels
from trinity_serve.model.kv_sizing import KvSizes
from trinity_serve.model.rope import rope_table
from trinity_serve.model.weights import AttentionWeights, ModelWeights, MoeWeights


class ExpertDispatch(Protocol):
    """What the decoder needs of the router: send a layer's rows, then collect their sum."""

    def begin_step(self) -> None:
        """Start a forward pass: a new step number, and the newest placement."""
        ...

    def dispatch(
        self, moe_layer: int, hidden_TD: Tensor, logits_TE: Tensor, bias_E: Tensor
    ) -> object:
        """Choose experts and send rows; does not wait. Returns a handle."""
        ...

    def combine(
        self,
        handle: Any,  # noqa: ANN401 - the dispatcher's own, given back to it
        shared_TD: Tensor,
    ) -> Tensor:
        """Wait for the rows of `handle`; return shared + the weighted expert outputs (T, D)."""
        ...


@dataclass(frozen=True)
class _Pool:
    """The layers of one kind: their cache, and what attention needs beside it."""

    cache: KvCache
    window: int | None
    rope: Tensor | None


class AfmoeModel:
    """One rank's model: its weights and KV cache, and the way to the experts."""

    def __init__(
        self,
        config: AfmoeConfig,
        weights: ModelWeights,
        kernels: tuple[ExpertKernels, ModelKernels],
        dispatch: ExpertDispatch,
        kv_sizes: KvSizes,
        max_model_len: int | None = None,
    ) -> None:
        self.config = config
        self.vocab_size = config.vocab_size
        self._weights = weights
        self._ops, self._model_ops = kernels
        self._dispatch = dispatch
        self._shape = AttentionShape(
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.rms_norm_eps,
        )
        self._embedding_scale = math.sqrt(config.hidden_size) if config.mup_enabled else 1.0
        max_positions = max_model_len or config.max_position_embeddings
        self._pools = self._make_pools(kv_sizes, max_positions)
        self._layer_in_pool = _count_within_kind(config)
        self._one_group = np.zeros(1, dtype=np.int32)

    @property
    def kv_bytes(self) -> int:
        """Bytes of both KV pools."""
        return sum(pool.cache.nbytes for pool in self._pools.values())

    def _make_pools(self, sizes: KvSizes, max_positions: int) -> dict[bool, _Pool]:
        config = self.config
        dtype = self._weights.embedding_VD.dtype
        num_global = sum(config.is_global(i) for i in range(config.num_hidden_layers))
        num_sliding = config.num_hidden_layers - num_global
        new_cache = self._model_ops.new_kv_cache
        rope = rope_table(max_positions, config.head_dim, config.rope_theta)
        return {
            True: _Pool(
                new_cache(num_global, sizes.num_global_blocks, self._shape, dtype), None, None
            ),
            False: _Pool(
                new_cache(num_sliding, sizes.num_sliding_blocks, self._shape, dtype),
                config.sliding_window,
                rope,
            ),
        }

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> Tensor:
        """Run one step; write K and V of its rows; return logits (R, V), float32.

        Blocks until every expert row has come back; raises the dispatcher's errors.
        """
        self._dispatch.begin_step()
        weights, eps = self._weights, self.config.rms_norm_eps
        ops = self._model_ops
        x_TD = ops.embed(batch.token_ids_T, weights.embedding_VD, self._embedding_scale)
        normed_TD = ops.rms_norm(x_TD, weights.layers[0].input_norm_D, eps)
        next_norms = [layer.input_norm_D for layer in weights.layers[1:]] + [weights.final_norm_D]
        for index, (layer, next_norm_D) in enumerate(zip(weights.layers, next_norms, strict=True)):
            branch_TD = self._attention(index, layer.attention, normed_TD, batch)
            x_TD, normed_TD = ops.residual_norm(
                x_TD, branch_TD, layer.post_attention_norm_D, layer.pre_mlp_norm_D, eps
            )
            if isinstance(layer.mlp, MoeWeights):
                branch_TD = self._moe(index - self.config.num_dense_layers, layer.mlp, normed_TD)
            else:
                branch_TD = self._swiglu(normed_TD, layer.mlp)
            x_TD, normed_TD = ops.residual_norm(
                x_TD, branch_TD, layer.post_mlp_norm_D, next_norm_D, eps
            )
        rows_RD = normed_TD[torch.from_numpy(batch.logits_rows_R)]
        return self._ops.linear(rows_RD, weights.lm_head, torch.float32)

    def _attention(
        self, index: int, weights: AttentionWeights, normed_TD: Tensor, batch: ForwardBatch
    ) -> Tensor:
        is_global = self.config.is_global(index)
        pool, layer = self._pools[is_global], self._layer_in_pool[index]
        view: KvView = batch.global_kv if is_global else batch.sliding_kv
        qkvg_TX = self._ops.linear(normed_TD, weights.qkvg)
        q_TX = self._model_ops.write_kv(
            qkvg_TX,
            weights.q_norm_d,
            weights.k_norm_d,
            self._shape,
            batch.positions_T,
            pool.rope,
            view,
            pool.cache,
            layer,
        )
        gated_TX = self._model_ops.paged_attention(
            q_TX, qkvg_TX, self._shape, batch, view, pool.cache, layer, pool.window
        )
        return self._ops.linear(gated_TX, weights.o)

    def _moe(self, moe_layer: int, weights: MoeWeights, normed_TD: Tensor) -> Tensor:
        logits_TE = self._ops.linear(normed_TD, weights.router, torch.float32)
        handle = self._dispatch.dispatch(moe_layer, normed_TD, logits_TE, weights.expert_bias_E)
        shared_TD = self._swiglu(normed_TD, weights.shared)  # while the rows are away
        return self._dispatch.combine(handle, shared_TD)

    def _swiglu(self, x_TD: Tensor, table: ExpertTable) -> Tensor:
        """A dense MLP or shared expert: one group with every row."""
        num_rows = x_TD.shape[0]
        rows_N = np.arange(num_rows, dtype=np.int32)
        offsets = np.array([0, num_rows], dtype=np.int32)
        return self._ops.grouped_swiglu(x_TD, rows_N, self._one_group, offsets, table)


def _count_within_kind(config: AfmoeConfig) -> tuple[int, ...]:
    """Number each layer among the layers of its kind (global or sliding)."""
    seen = {True: 0, False: 0}
    numbers = []
    for index in range(config.num_hidden_layers):
        kind = config.is_global(index)
        numbers.append(seen[kind])
        seen[kind] += 1
    return tuple(numbers)
