"""The forward pass of AFMoE over paged KV and expert shards.

T rows, R rows whose logits are wanted, V vocabulary.

Source: transformers' AfmoeForCausalLM; tests/oracle holds this to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cluster.model_config import AfmoeConfig
from router.handle import Handle
from router.isolation import RowRequests
from trinity_serve.model.batch import ForwardBatch, Int64
from trinity_serve.model.kernels.base import ModelKernels
from trinity_serve.model.kv_sizing import KvSizes
from trinity_serve.model.micro_batch import cut
from trinity_serve.model.rope import rope_table
from trinity_serve.model.segments import LayerPlace, Pool, Rows, Segments, attention_shape


class ExpertDispatch(Protocol):
    """What the decoder needs of the router: send a layer's rows, then collect what came back."""

    def begin_step(self) -> None:
        """Start a forward pass: a new step number, and the newest placement."""
        ...

    def dispatch(
        self,
        moe_layer: int,
        hidden_TD: Tensor,
        topk_ids_TK: Int64,
        micro_batch: int,
        requests: RowRequests,
    ) -> Handle:
        """Send rows to the shards; does not wait."""
        ...

    def collect(self, handle: Handle) -> tuple[Tensor, Int64]:
        """Wait for every row; return (rows_ND, row_of_slot_TK)."""
        ...

    def ask_again(self, handle: Handle) -> None:
        """Fetch the rows once more: their sum was not finite. Raises the second time."""
        ...


@dataclass(slots=True)
class _Flight:
    """One micro-batch, and what it waits for."""

    rows: Rows
    micro_batch: int
    requests: RowRequests
    handle: Handle | None = None
    layer: int = 0


class AfmoeModel:
    """One rank's model: the pieces between dispatches, strung together.

    From `micro_batch_rows` rows on a step runs as two micro-batches: while the rows of one are away
    at the shards, the rank computes the other's attention. Each then reads the experts' weights for
    itself, so it pays only where shards compute beside the rank. No bit changes by it.
    """

    def __init__(
        self,
        config: AfmoeConfig,
        segments: Segments,
        dispatch: ExpertDispatch,
        micro_batch_rows: int | None = None,
    ) -> None:
        self.vocab_size = config.vocab_size
        self.num_split_steps = 0
        """Steps that ran as two micro-batches."""
        self._segments = segments
        self._dispatch = dispatch
        self._num_layers = config.num_hidden_layers
        self._num_dense = config.num_dense_layers
        self.micro_batch_rows = micro_batch_rows

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> Tensor:
        """Run one step; write K and V of its rows; return logits (R, V), float32.

        Blocks until every expert row has come back; raises the dispatcher's errors.
        """
        self._dispatch.begin_step()
        parts = self._parts(batch)
        flights = []
        for index, part in enumerate(parts):
            first_row = sum(before.num_rows for before in parts[:index])
            requests = RowRequests(batch.query_start_B1, first_row)
            flights.append(_Flight(self._segments.start(part), index, requests))
        for layer in range(self._num_layers):
            for flight in flights:
                self._land(flight)
                self._segments.attention(layer, flight.rows)
                if layer < self._num_dense:
                    self._segments.dense(layer, flight.rows)
                else:
                    self._take_off(layer, flight)
        for flight in flights:
            self._land(flight)
        logits = [self._segments.logits(f.rows, f.rows.batch.logits_rows_R) for f in flights]
        # Also of one tensor `cat` makes a copy: megabytes of logits per step.
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def _parts(self, batch: ForwardBatch) -> tuple[ForwardBatch, ...]:
        if self.micro_batch_rows is None or batch.num_rows < max(2, self.micro_batch_rows):
            return (batch,)
        self.num_split_steps += 1
        return cut(batch, batch.num_rows // 2)

    def _take_off(self, layer: int, flight: _Flight) -> None:
        """Send a MoE layer's rows; compute the shared expert while they are away."""
        rows = flight.rows
        topk_ids_TK = self._segments.route(layer, rows)
        flight.layer = layer
        flight.handle = self._dispatch.dispatch(
            layer - self._num_dense,
            rows.normed_TD.cpu(),
            topk_ids_TK,
            flight.micro_batch,
            flight.requests,
        )
        self._segments.shared_expert(layer, rows)

    def _land(self, flight: _Flight) -> None:
        """Collect what is away and finish its layer."""
        if flight.handle is None:
            return
        while not self._segments.finish_moe(
            flight.layer, flight.rows, *self._dispatch.collect(flight.handle)
        ):
            self._dispatch.ask_again(flight.handle)
        flight.handle = None


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
    rope = rope_table(max_model_len, config.head_dim, config.rope_theta).to(kernels.device)
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
