"""The forward pass of AFMoE over paged KV and expert shards.

T rows, R rows whose logits are wanted, V vocabulary.

Source: transformers' AfmoeForCausalLM; tests/oracle holds this to it.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from cluster.model_config import AfmoeConfig
from router.dispatcher import Handle
from trinity_serve.model.batch import ForwardBatch, Int64
from trinity_serve.model.kernels.base import ModelKernels
from trinity_serve.model.kv_sizing import KvSizes
from trinity_serve.model.rope import rope_table
from trinity_serve.model.segments import LayerPlace, Pool, Rows, Segments, attention_shape


class ExpertDispatch(Protocol):
    """What the decoder needs of the router: send a layer's rows, then collect what came back."""

    def begin_step(self) -> None:
        """Start a forward pass: a new step number, and the newest placement."""
        ...

    def dispatch(
        self, moe_layer: int, hidden_TD: Tensor, topk_ids_TK: Int64, micro_batch: int
    ) -> Handle:
        """Send rows to the shards; does not wait."""
        ...

    def collect(self, handle: Handle) -> tuple[Tensor, Int64]:
        """Wait for every row; return (rows_ND, row_of_slot_TK)."""
        ...

    def ask_again(self, handle: Handle) -> None:
        """Fetch the rows once more: their sum was not finite. Raises the second time."""
        ...


class AfmoeModel:
    """One rank's model: the pieces between dispatches, strung together."""

    def __init__(self, config: AfmoeConfig, segments: Segments, dispatch: ExpertDispatch) -> None:
        self.vocab_size = config.vocab_size
        self._segments = segments
        self._dispatch = dispatch
        self._num_layers = config.num_hidden_layers
        self._num_dense = config.num_dense_layers

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> Tensor:
        """Run one step; write K and V of its rows; return logits (R, V), float32.

        Blocks until every expert row has come back; raises the dispatcher's errors.
        """
        self._dispatch.begin_step()
        rows = self._segments.start(batch)
        for layer in range(self._num_layers):
            self._segments.attention(layer, rows)
            if layer < self._num_dense:
                self._segments.dense(layer, rows)
            else:
                self._moe(layer, rows)
        return self._segments.logits(rows, batch.logits_rows_R)

    def _moe(self, layer: int, rows: Rows) -> None:
        topk_ids_TK = self._segments.route(layer, rows)
        moe_layer = layer - self._num_dense
        handle = self._dispatch.dispatch(moe_layer, rows.normed_TD, topk_ids_TK, 0)
        self._segments.shared_expert(layer, rows)  # while the rows are away
        while not self._segments.finish_moe(layer, rows, *self._dispatch.collect(handle)):
            self._dispatch.ask_again(handle)


def place_layers(
    config: AfmoeConfig,
    kernels: ModelKernels,
    sizes: KvSizes,
    max_model_len: int,
    dtype: torch.dtype,
) -> list[LayerPlace]:
    """Allocate both KV pools in compute dtype and say where each layer's K and V are."""
    shape = attention_shape(config)
    num_global = sum(config.is_global(layer) for layer in range(config.num_hidden_layers))
    num_sliding = config.num_hidden_layers - num_global
    rope = rope_table(max_model_len, config.head_dim, config.rope_theta)
    new_cache = kernels.new_kv_cache
    global_cache = new_cache(num_global, sizes.num_global_blocks, shape, dtype)
    sliding_cache = new_cache(num_sliding, sizes.num_sliding_blocks, shape, dtype)
    pools = {
        True: Pool(global_cache, None, None, is_global=True),
        False: Pool(sliding_cache, config.sliding_window, rope, is_global=False),
    }
    seen = {True: 0, False: 0}
    places = []
    for layer in range(config.num_hidden_layers):
        kind = config.is_global(layer)
        places.append(LayerPlace(pools[kind], seen[kind]))
        seen[kind] += 1
    return places
