"""Which rows each attention program takes; checks what the kernels use as an address.

T rows, B sequences, M block-table columns, N blocks of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cluster.errors import KernelInputError
from trinity_serve.model.batch import KV_BLOCK_SIZE, ForwardBatch, Int32, Int64
from trinity_serve.model.kernels.cuda.step_memory import upload

CHUNK_TILES = 32
"""KV tiles per chunk of online softmax, as in C: it belongs to the bits."""


@dataclass(frozen=True)
class AttentionPlan:
    """One batch and view on the device."""

    blocks_N3: Tensor
    """int32: sequence, first row, rows of each block."""
    tables_BM: Tensor
    positions_T: Tensor
    max_chunks: int
    """Chunks that the rows of one block see at most."""


def plan_attention(
    batch: ForwardBatch,
    tables_BM: Int32,
    window: int | None,
    sizes: tuple[int, int],
    device: torch.device,
) -> AttentionPlan:
    """Cut the rows into blocks and upload what the kernels read.

    `sizes` are the cache's KV blocks and the most positions in a block of rows.

    Raises:
        KernelInputError: rows are out of order, or see a position whose KV block is not there.
    """
    num_kv_blocks, queries_per_block = sizes
    starts_B1, positions_T = batch.query_start_B1, batch.positions_T
    _check_types(starts_B1, positions_T, tables_BM)
    blocks_N3 = cut_blocks(starts_B1, queries_per_block)
    first_N = positions_T[blocks_N3[:, 1]]
    last_N = positions_T[blocks_N3[:, 1] + blocks_N3[:, 2] - 1]
    low_N = np.zeros_like(first_N) if window is None else np.maximum(0, first_N - window + 1)
    first_tile_N, end_tile_N = low_N // KV_BLOCK_SIZE, last_N // KV_BLOCK_SIZE + 1
    _check_order(positions_T, starts_B1)
    _check_tables(tables_BM, blocks_N3[:, 0], (first_tile_N, end_tile_N), num_kv_blocks)
    chunks_N = -(-end_tile_N // CHUNK_TILES) - first_tile_N // CHUNK_TILES
    return AttentionPlan(
        upload(blocks_N3, device),
        upload(tables_BM, device),
        upload(positions_T, device),
        int(chunks_N.max(initial=0)),
    )


def cut_blocks(starts_B1: Int32, queries_per_block: int) -> Int32:
    """Return int32 (N, 3): sequence, first row and rows of each block; none is empty."""
    counts_B = np.diff(starts_B1)
    blocks_B = -(-counts_B // queries_per_block)
    seq_N = np.repeat(np.arange(len(counts_B), dtype=np.int32), blocks_B)
    before_B = np.cumsum(blocks_B) - blocks_B
    number_N = np.arange(len(seq_N), dtype=np.int32) - before_B[seq_N]
    first_N = starts_B1[seq_N] + number_N * queries_per_block
    rows_N = np.minimum(queries_per_block, starts_B1[seq_N + 1] - first_N)
    return np.stack([seq_N, first_N, rows_N], axis=1).astype(np.int32)


def _check_types(starts_B1: Int32, positions_T: Int64, tables_BM: Int32) -> None:
    found = f"{positions_T.dtype}, {starts_B1.dtype}, {tables_BM.dtype} of {tables_BM.ndim} axes"
    expected = "int64, int32, int32 of 2 axes"
    if found != expected:
        raise KernelInputError("positions, query_start, block_tables", found, expected)
    if starts_B1[0] != 0 or starts_B1[-1] != len(positions_T) or (np.diff(starts_B1) < 0).any():
        expected = f"rising from 0 to {len(positions_T)}"
        raise KernelInputError("query_start", f"{starts_B1.tolist()}", expected)


def _check_order(positions_T: Int64, starts_B1: Int32) -> None:
    rises = np.diff(positions_T) > 0
    starts = starts_B1[1:-1]
    rises[starts[(starts > 0) & (starts < len(positions_T))] - 1] = True
    if not rises.all() or (positions_T < 0).any():
        raise KernelInputError("positions", f"{positions_T.tolist()}", "rising in each sequence")


def _check_tables(
    tables_BM: Int32, seq_N: Int32, tiles: tuple[Int64, Int64], num_kv_blocks: int
) -> None:
    """Every tile that a block of rows reads is in its sequence's table and in the cache."""
    first_N, end_N = tiles
    num_seqs, width = tables_BM.shape
    first_B, end_B = np.full(num_seqs, width), np.zeros(num_seqs, np.int64)
    np.minimum.at(first_B, seq_N, first_N)
    np.maximum.at(end_B, seq_N, end_N)
    column_1M = np.arange(width)[None, :]
    read_BM = (column_1M >= first_B[:, None]) & (column_1M < end_B[:, None])
    missing_BM = (tables_BM < 0) | (tables_BM >= num_kv_blocks)
    if (end_B > width).any() or (read_BM & missing_BM).any():
        expected = f"a block of 0 to {num_kv_blocks - 1} for every position seen"
        raise KernelInputError("block_tables", f"{tables_BM.tolist()}", expected)
