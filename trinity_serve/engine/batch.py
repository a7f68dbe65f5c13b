"""Turn a step's chunks into the arrays that the model works on."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from trinity_serve.engine.config import blocks_for
from trinity_serve.engine.kv_blocks import KvBlocks
from trinity_serve.engine.scheduler import Chunk
from trinity_serve.model.batch import KV_BLOCK_SIZE, ForwardBatch, Int32, Int64, KvView


def build_batch(chunks: Seq[Chunk], kv: KvBlocks) -> ForwardBatch:
    """Return the rows of `chunks` in order.

    Logits are wanted where a chunk ends its context and where a prompt is scored, in row order.
    Vectorised over sequences; only prefill chunks are copied one by one. Block tables are copies,
    so that the pools may move on while the batch is in use.
    """
    starts_B = np.array([chunk.start for chunk in chunks], np.int64)
    counts_B = np.array([chunk.num_rows for chunk in chunks], np.int64)
    rows_B = np.array([chunk.kv.row for chunk in chunks], np.int64)
    query_start_B1 = np.zeros(len(chunks) + 1, np.int32)
    np.cumsum(counts_B, out=query_start_B1[1:])
    first_B = query_start_B1[:-1].astype(np.int64)

    num_rows = int(query_start_B1[-1])
    offsets_T = np.repeat(starts_B - first_B, counts_B)
    positions_T = offsets_T + np.arange(num_rows, dtype=np.int64)
    rows_T = np.repeat(rows_B, counts_B)
    num_columns = blocks_for(max(chunk.end for chunk in chunks))
    last_row_B = first_B + counts_B - 1
    gives_logits_B = np.array([chunk.gives_logits for chunk in chunks], np.bool_)
    return ForwardBatch(
        token_ids_T=_token_ids(chunks, first_B, num_rows),
        positions_T=positions_T,
        query_start_B1=query_start_B1,
        global_kv=_view(kv.global_tables, rows_B, num_columns, rows_T, positions_T),
        sliding_kv=_view(kv.sliding_tables, rows_B, num_columns, rows_T, positions_T),
        logits_rows_R=_logits_rows(chunks, first_B, last_row_B[gives_logits_B]),
    )


def _logits_rows(chunks: Seq[Chunk], first_B: Int64, last_rows_R: Int64) -> Int64:
    """Return `last_rows_R`, with each chunk's scored rows before its own last row if it has any."""
    if not any(chunk.seq.num_to_score for chunk in chunks):
        return last_rows_R
    rows = [
        first + position - chunk.start
        for first, chunk in zip(first_B.tolist(), chunks, strict=True)
        for position in (*chunk.scored_rows, *([chunk.end - 1] if chunk.gives_logits else []))
    ]
    return np.array(rows, np.int64)


def _token_ids(chunks: Seq[Chunk], first_B: Int64, num_rows: int) -> Int64:
    if num_rows == len(chunks):
        return np.array([chunk.seq.token_at(chunk.start) for chunk in chunks], np.int64)
    token_ids_T = np.empty(num_rows, np.int64)
    for first, chunk in zip(first_B.tolist(), chunks, strict=True):
        token_ids_T[first : first + chunk.num_rows] = chunk.seq.tokens_T[chunk.start : chunk.end]
    return token_ids_T


def _view(
    tables: Int32, rows_B: Int64, num_columns: int, rows_T: Int64, positions_T: Int64
) -> KvView:
    blocks_T = tables[rows_T, positions_T // KV_BLOCK_SIZE].astype(np.int64)
    return KvView(
        block_tables_BM=np.ascontiguousarray(tables[rows_B, :num_columns]),
        slot_mapping_T=blocks_T * KV_BLOCK_SIZE + positions_T % KV_BLOCK_SIZE,
    )
