"""`Segments` as one C call each (`kernels/cpu/src/segment.c`): same ops, same bits, fewer calls.

What a layer needs is written into a structure when the model is loaded; what a step needs, once per
step. T rows, D hidden, X width of q, k, v and gate together, H*d width of q.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cluster.errors import KernelInputError
from cluster.model_config import AfmoeConfig
from experts.kernels.base import LinearWeight
from experts.kernels.cpu.kernels import CpuExpertKernels, CpuLinear, CpuTable
from experts.kernels.cpu.library import DTYPE_CODES, Status, address
from trinity_serve.model.batch import ForwardBatch, Int32, Int64
from trinity_serve.model.fused.structs import (
    AttentionSegment,
    CombineCall,
    MoeSegment,
    SegmentRows,
)
from trinity_serve.model.kernels.cpu.kernels import CpuKvCache, CpuModelKernels
from trinity_serve.model.segments import LayerPlace, PlainSegments, Pool, Rows
from trinity_serve.model.weights import ModelWeights, MoeWeights

_INT32_BYTES = 4


class _Step:
    """One micro-batch's arrays as C reads them; keeps alive what the structures point to."""

    def __init__(self, segments: CpuSegments, rows: Rows) -> None:
        config, dtype, num_rows = segments.config, rows.x_TD.dtype, rows.batch.num_rows
        q_width = config.num_attention_heads * config.head_dim
        self.work = [
            torch.empty((num_rows, width), dtype=dtype)
            for width in (segments.shape.qkvg_width, q_width, q_width, config.hidden_size)
        ]
        self.logits_TE = torch.empty((num_rows, config.num_experts))
        top_k = config.num_experts_per_tok
        self.topk_ids_TK: Int64 = np.empty((num_rows, top_k), np.int64)
        self.weights_TK = torch.empty((num_rows, top_k))
        self.routed = (
            self.logits_TE.data_ptr(),
            address(self.topk_ids_TK),
            self.weights_TK.data_ptr(),
        )
        self.shared_TD = torch.empty((num_rows, config.hidden_size), dtype=dtype)
        # The shared expert as a table of one expert, whose only group has every row.
        self.group = np.arange(-3, num_rows, dtype=np.int32)
        self.group[:3] = 0, 0, num_rows
        at = address(self.group)
        self.group_addresses = (at + 3 * _INT32_BYTES, at, at + _INT32_BYTES)
        self.x, self.normed = rows.x_TD.data_ptr(), rows.normed_TD.data_ptr()
        self.of_pool = {pool: self._rows_of(rows.batch, pool) for pool in segments.pools}
        self.combine = CombineCall(
            weights=self.weights_TK.data_ptr(),
            shared=self.shared_TD.data_ptr(),
            out=self.work[3].data_ptr(),
            tokens=num_rows,
            top_k=top_k,
            width=config.hidden_size,
            dtype=DTYPE_CODES[dtype],
        )
        self.combine_address = ctypes.addressof(self.combine)

    def _rows_of(self, batch: ForwardBatch, pool: Pool) -> _PoolRows:
        view = pool.view(batch)
        num_seqs, table_width = view.block_tables_BM.shape
        struct = SegmentRows(
            positions=address(batch.positions_T),
            slots=address(view.slot_mapping_T),
            query_start=address(batch.query_start_B1),
            block_tables=address(view.block_tables_BM),
            num_seqs=num_seqs,
            table_width=table_width,
            num_rows=batch.num_rows,
            qkvg=self.work[0].data_ptr(),
            q=self.work[1].data_ptr(),
            gated=self.work[2].data_ptr(),
            branch=self.work[3].data_ptr(),
        )
        return _PoolRows(struct, ctypes.addressof(struct))


@dataclass(frozen=True)
class _PoolRows:
    struct: SegmentRows
    address: int


class CpuSegments(PlainSegments):
    """Attention, router and the end of a MoE layer are one call each; the rest is plain."""

    def __init__(
        self,
        config: AfmoeConfig,
        weights: ModelWeights,
        kernels: tuple[CpuExpertKernels, CpuModelKernels],
        places: Sequence[LayerPlace],
    ) -> None:
        super().__init__(config, weights, kernels, places)
        self._c = kernels[1].library.c
        self._grouped_swiglu = kernels[0].library.c.ts_grouped_swiglu
        self._dtype = weights.embedding_VD.dtype
        self.pools = tuple({place.pool: None for place in places})
        layers = range(config.num_hidden_layers)
        self._attention = [self._attention_struct(layer) for layer in layers]
        self._attention_addresses = [ctypes.addressof(struct) for struct in self._attention]
        self._moe = [
            self._moe_struct(layer, weights.layers[layer].mlp)
            if layer in config.moe_layers
            else None
            for layer in layers
        ]
        self._shared = [_shared_handle(weights.layers[layer].mlp) for layer in layers]

    def start(self, batch: ForwardBatch) -> Rows:
        """See `Segments.start`."""
        _check_batch(batch)
        rows = super().start(batch)
        rows.native = _Step(self, rows)
        return rows

    def attention(self, layer: int, rows: Rows) -> None:
        """See `Segments.attention`."""
        step: _Step = rows.native
        status = self._c.ts_segment_attention(
            self._attention_addresses[layer],
            step.of_pool[self.places[layer].pool].address,
            step.normed,
            step.x,
            step.x,
            step.normed,
        )
        if status != Status.OK:
            _raise(status, "attention", layer, rows)

    def route(self, layer: int, rows: Rows) -> Int64:
        """See `Segments.route`."""
        step: _Step = rows.native
        status = self._c.ts_segment_route(
            ctypes.addressof(self._moe_of(layer)),
            step.normed,
            rows.batch.num_rows,
            *step.routed,
        )
        if status != Status.OK:
            _raise(status, "route", layer, rows)
        return step.topk_ids_TK

    def shared_expert(self, layer: int, rows: Rows) -> None:
        """See `Segments.shared_expert`."""
        step: _Step = rows.native
        num_rows = rows.batch.num_rows
        status = self._grouped_swiglu(
            step.normed,
            num_rows,
            num_rows,
            1,
            *step.group_addresses,
            self._shared[layer],
            step.combine.shared,
        )
        if status != Status.OK:
            _raise(status, "shared_expert", layer, rows)

    def finish_moe(
        self, layer: int, rows: Rows, expert_rows_ND: Tensor, row_of_slot_TK: Int64
    ) -> bool:
        """See `Segments.finish_moe`."""
        step: _Step = rows.native
        if not expert_rows_ND.is_contiguous() or expert_rows_ND.dtype is not self._dtype:
            found = f"{expert_rows_ND.dtype}, strides {expert_rows_ND.stride()}"
            raise KernelInputError("expert_rows", found, f"contiguous {self._dtype}")
        call = step.combine
        call.rows, call.num_rows = expert_rows_ND.data_ptr(), expert_rows_ND.shape[0]
        call.row_of_slot = address(row_of_slot_TK)
        status = self._c.ts_segment_finish_moe(
            ctypes.addressof(self._moe_of(layer)), step.combine_address, step.x, step.x, step.normed
        )
        if status == Status.NOT_FINITE:
            return False
        if status != Status.OK:
            _raise(status, "finish_moe", layer, rows)
        return True

    def dense(self, layer: int, rows: Rows) -> None:
        """See `Segments.dense`."""
        super().dense(layer, rows)
        step: _Step = rows.native
        step.x, step.normed = rows.x_TD.data_ptr(), rows.normed_TD.data_ptr()

    def _moe_of(self, layer: int) -> MoeSegment:
        struct = self._moe[layer]
        assert struct is not None
        return struct

    def _attention_struct(self, layer: int) -> AttentionSegment:
        weights, place = self.weights.layers[layer], self.places[layer]
        attention, pool, config = weights.attention, place.pool, self.config
        assert isinstance(pool.cache, CpuKvCache)
        return AttentionSegment(
            qkvg=_handle(attention.qkvg),
            o=_handle(attention.o),
            q_norm=attention.q_norm_d.data_ptr(),
            k_norm=attention.k_norm_d.data_ptr(),
            post_norm=weights.post_attention_norm_D.data_ptr(),
            next_norm=weights.pre_mlp_norm_D.data_ptr(),
            rope=None if pool.rope is None else pool.rope.data_ptr(),
            kv=pool.cache.handle,
            max_positions=0 if pool.rope is None else pool.rope.shape[0],
            layer=place.layer,
            window=pool.window or 0,
            hidden=config.hidden_size,
            num_heads=config.num_attention_heads,
            dtype=DTYPE_CODES[self._dtype],
            eps=config.rms_norm_eps,
        )

    def _moe_struct(self, layer: int, mlp: object) -> MoeSegment:
        assert isinstance(mlp, MoeWeights)
        config = self.config
        return MoeSegment(
            router=_handle(mlp.router),
            bias=mlp.expert_bias_E.data_ptr(),
            post_norm=self.weights.layers[layer].post_mlp_norm_D.data_ptr(),
            next_norm=self.next_norms_LD[layer].data_ptr(),
            experts=config.num_experts,
            top_k=config.num_experts_per_tok,
            hidden=config.hidden_size,
            dtype=DTYPE_CODES[self._dtype],
            scale=config.route_scale,
            eps=config.rms_norm_eps,
        )


def _shared_handle(mlp: object) -> int | None:
    """Return the table of a MoE layer's shared expert; None for a dense layer."""
    if not isinstance(mlp, MoeWeights):
        return None
    assert isinstance(mlp.shared, CpuTable)
    return mlp.shared.handle


def _handle(weight: LinearWeight) -> int | None:
    assert isinstance(weight, CpuLinear)
    return weight.handle


def _check_batch(batch: ForwardBatch) -> None:
    """Check once per step what each op would check per layer."""
    arrays: dict[str, tuple[Int32 | Int64, type[np.int32 | np.int64]]] = {
        "positions": (batch.positions_T, np.int64),
        "query_start": (batch.query_start_B1, np.int32),
        "global block_tables": (batch.global_kv.block_tables_BM, np.int32),
        "global slot_mapping": (batch.global_kv.slot_mapping_T, np.int64),
        "sliding block_tables": (batch.sliding_kv.block_tables_BM, np.int32),
        "sliding slot_mapping": (batch.sliding_kv.slot_mapping_T, np.int64),
    }
    for name, (array, dtype) in arrays.items():
        if array.dtype != dtype or not array.flags.c_contiguous:
            raise KernelInputError(name, f"{array.dtype}, strides {array.strides}", f"{dtype}")
    num_rows, num_seqs = batch.num_rows, len(batch.query_start_B1) - 1
    for view in (batch.global_kv, batch.sliding_kv):
        if len(view.slot_mapping_T) != num_rows or len(view.block_tables_BM) != num_seqs:
            found = f"{len(view.slot_mapping_T)} slots, {len(view.block_tables_BM)} tables"
            raise KernelInputError("batch", found, f"{num_rows} rows of {num_seqs} sequences")


def _raise(status: int, segment: str, layer: int, rows: Rows) -> None:
    if status == Status.NO_MEMORY:
        raise MemoryError(f"no scratch memory for {segment} of {rows.batch.num_rows} rows")
    found = f"an index out of range in {segment} of layer {layer}"
    raise KernelInputError("batch", found, "slots, positions and blocks of the KV cache")
