"""Cut a step's rows in two, so that one half's attention runs while the other's rows are away.

T rows, B sequences, R rows whose logits are wanted. Rows keep their order, so a sequence may be
cut: its earlier rows are in the first half, which writes a layer's K and V before the second half
reads them.
"""

from __future__ import annotations

import numpy as np

from trinity_serve.model.batch import ForwardBatch, KvView


def cut(batch: ForwardBatch, at: int) -> tuple[ForwardBatch, ForwardBatch]:
    """Return rows 0 … at-1 and rows at … T-1 as batches of their own; 0 < at < T."""
    return _rows(batch, 0, at), _rows(batch, at, batch.num_rows)


def _rows(batch: ForwardBatch, start: int, stop: int) -> ForwardBatch:
    query_start = batch.query_start_B1
    first = int(np.searchsorted(query_start, start, side="right")) - 1
    last = int(np.searchsorted(query_start, stop, side="left"))
    logits_rows = batch.logits_rows_R
    wanted = logits_rows[(logits_rows >= start) & (logits_rows < stop)]
    return ForwardBatch(
        token_ids_T=batch.token_ids_T[start:stop],
        positions_T=batch.positions_T[start:stop],
        query_start_B1=np.clip(query_start[first : last + 1], start, stop) - np.int32(start),
        global_kv=_view(batch.global_kv, slice(first, last), slice(start, stop)),
        sliding_kv=_view(batch.sliding_kv, slice(first, last), slice(start, stop)),
        logits_rows_R=wanted - start,
    )


def _view(view: KvView, seqs: slice, rows: slice) -> KvView:
    return KvView(view.block_tables_BM[seqs], view.slot_mapping_T[rows])
