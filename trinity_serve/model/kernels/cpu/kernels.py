"""`ModelKernels` in C (see `src/`): checks shapes once, then one call without copies.

T rows, B sequences, M table columns, H query heads, d head_dim, X = H*d.
"""

from __future__ import annotations

import weakref
from pathlib import Path

import torch
from torch import Tensor

from cluster.errors import KernelInputError
from experts.kernels.cpu.library import DTYPE_CODES, Status, address
from experts.kernels.cpu.library import LIBRARY_DIR as EXPERT_LIBRARY_DIR
from trinity_serve.model.batch import KV_BLOCK_SIZE, ForwardBatch, Int64, KvView
from trinity_serve.model.kernels.base import AttentionShape
from trinity_serve.model.kernels.cpu.checks import INT32, INT64, check_array, check_tensor
from trinity_serve.model.kernels.cpu.library import LIBRARY_DIR, ModelLibrary
from trinity_serve.model.kernels.cpu.row_ops import CpuRowOps

MAX_HEAD_DIM = 512
"""Of the C sources' own buffers (TS_MAX_HEAD_DIM)."""


class CpuKvCache:
    """K and V of a pool's layers as tiles of 32 positions that attention reads in place."""

    def __init__(
        self,
        library: ModelLibrary,
        num_layers: int,
        num_blocks: int,
        shape: AttentionShape,
        dtype: torch.dtype,
    ) -> None:
        self.num_layers = num_layers
        self.num_blocks = num_blocks
        self.shape = shape
        self.dtype = dtype
        self.handle: int | None = library.c.ts_kv_new(
            num_layers, num_blocks, shape.num_kv_heads, shape.head_dim, DTYPE_CODES[dtype]
        )
        if self.handle is None:
            raise MemoryError(
                f"no memory for {num_blocks} KV blocks of {KV_BLOCK_SIZE} positions in "
                f"{num_layers} layers"
            )
        self._nbytes = int(library.c.ts_kv_bytes(self.handle))
        weakref.finalize(self, library.c.ts_kv_free, self.handle)

    @property
    def nbytes(self) -> int:
        """Bytes of address space; memory is taken as blocks are first written."""
        return self._nbytes


class CpuModelKernels(CpuRowOps):
    """`ModelKernels` on the CPU's vector units."""

    name = "cpu"
    device = torch.device("cpu")

    def __init__(
        self, library_dir: Path = LIBRARY_DIR, expert_library_dir: Path = EXPERT_LIBRARY_DIR
    ) -> None:
        super().__init__(ModelLibrary(library_dir, expert_library_dir))

    def new_kv_cache(
        self, num_layers: int, num_blocks: int, shape: AttentionShape, dtype: torch.dtype
    ) -> CpuKvCache:
        """Allocate a pool's cache, zeroed."""
        d = shape.head_dim
        if not 1 <= d <= MAX_HEAD_DIM or shape.num_heads % shape.num_kv_heads:
            expected = f"head_dim up to {MAX_HEAD_DIM}, query heads a multiple of KV heads"
            raise KernelInputError("shape", f"{shape}", expected)
        return CpuKvCache(self.library, num_layers, num_blocks, shape, dtype)

    def write_kv(
        self,
        qkvg_TX: Tensor,
        q_norm_d: Tensor,
        k_norm_d: Tensor,
        shape: AttentionShape,
        positions_T: Int64,
        rope: Tensor | None,
        view: KvView,
        cache: CpuKvCache,
        layer: int,
    ) -> Tensor:
        """See `ModelKernels.write_kv`."""
        num_rows, d = qkvg_TX.shape[0], shape.head_dim
        _check_layer(cache, layer, shape)
        check_tensor("qkvg", qkvg_TX, (num_rows, shape.qkvg_width), cache.dtype)
        check_tensor("q_norm", q_norm_d, (d,), cache.dtype)
        check_tensor("k_norm", k_norm_d, (d,), cache.dtype)
        check_array("positions", positions_T, (num_rows,), INT64)
        check_array("slot_mapping", view.slot_mapping_T, (num_rows,), INT64)
        if rope is not None:
            check_tensor("rope", rope, (rope.shape[0], d), torch.float32)
        q_TX = torch.empty((num_rows, shape.num_heads * d), dtype=cache.dtype)
        status = self._c.ts_write_kv(
            qkvg_TX.data_ptr(),
            q_norm_d.data_ptr(),
            k_norm_d.data_ptr(),
            shape.num_heads,
            shape.rms_norm_eps,
            address(positions_T),
            address(view.slot_mapping_T),
            None if rope is None else rope.data_ptr(),
            num_rows,
            0 if rope is None else rope.shape[0],
            cache.handle,
            layer,
            q_TX.data_ptr(),
        )
        if status != Status.OK:
            slots = f"slots {view.slot_mapping_T.tolist()}, positions {positions_T.tolist()}"
            raise KernelInputError("slot_mapping or positions", slots, _extent(cache, rope))
        return q_TX

    def paged_attention(
        self,
        q_TX: Tensor,
        qkvg_TX: Tensor,
        shape: AttentionShape,
        batch: ForwardBatch,
        view: KvView,
        cache: CpuKvCache,
        layer: int,
        window: int | None,
    ) -> Tensor:
        """See `ModelKernels.paged_attention`."""
        num_rows, num_seqs = q_TX.shape[0], len(batch.query_start_B1) - 1
        tables_BM = view.block_tables_BM
        _check_layer(cache, layer, shape)
        check_tensor("q", q_TX, (num_rows, shape.num_heads * shape.head_dim), cache.dtype)
        check_tensor("qkvg", qkvg_TX, (num_rows, shape.qkvg_width), cache.dtype)
        check_array("positions", batch.positions_T, (num_rows,), INT64)
        check_array("query_start", batch.query_start_B1, (num_seqs + 1,), INT32)
        check_array("block_tables", tables_BM, (num_seqs, tables_BM.shape[1]), INT32)
        out_TX = torch.empty_like(q_TX)
        status = self._c.ts_paged_attention(
            q_TX.data_ptr(),
            qkvg_TX.data_ptr(),
            shape.num_heads,
            address(batch.positions_T),
            address(batch.query_start_B1),
            address(tables_BM),
            num_seqs,
            tables_BM.shape[1],
            num_rows,
            cache.handle,
            layer,
            window or 0,
            out_TX.data_ptr(),
        )
        if status == Status.NO_MEMORY:
            raise MemoryError(f"no scratch memory for attention of {num_rows} rows")
        if status != Status.OK:
            found = f"rows {batch.query_start_B1.tolist()}, tables of {tables_BM.shape}"
            expected = "rising positions per sequence, and a block for every position seen"
            raise KernelInputError("batch", found, expected)
        return out_TX


def _check_layer(cache: CpuKvCache, layer: int, shape: AttentionShape) -> None:
    if not 0 <= layer < cache.num_layers or shape != cache.shape:
        found = f"layer {layer} of {shape}"
        raise KernelInputError("layer", found, f"below {cache.num_layers} of {cache.shape}")


def _extent(cache: CpuKvCache, rope: Tensor | None) -> str:
    slots = f"slots 0 to {cache.num_blocks * KV_BLOCK_SIZE - 1}"
    return slots if rope is None else f"{slots}, positions 0 to {rope.shape[0] - 1}"
