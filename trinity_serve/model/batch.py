"""What one forward pass works on: rows of many sequences, and where their KV lives.

T rows in all, B sequences, M block-table columns, R rows whose logits are wanted.
Everything is on the host; a GPU backend copies it to static buffers of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

KV_BLOCK_SIZE = 32
"""Positions per KV block; also the attention tile, so it belongs to the bit class."""


@dataclass(frozen=True, slots=True)
class KvView:
    """Where the batch's sequences keep K and V, for the layers of one pool.

    `block_tables_BM[b, i]` is the block with positions i*32 … i*32+31 of sequence b; entries of
    freed (out of window) or not yet needed blocks are -1 and are never read.
    `slot_mapping_T[t]` = block * 32 + offset: where row t's K and V are written.
    """

    block_tables_BM: Int32
    slot_mapping_T: Int64


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One step's rows. Rows of a sequence are contiguous and in position order."""

    token_ids_T: Int64
    positions_T: Int64
    """Absolute, 0-based."""
    query_start_B1: Int32
    """Rows of sequence b are query_start_B1[b] … query_start_B1[b+1] - 1."""
    global_kv: KvView
    sliding_kv: KvView
    logits_rows_R: Int64
    """Row indices for which logits are returned, in this order."""

    @property
    def num_rows(self) -> int:
        """T."""
        return len(self.token_ids_T)
