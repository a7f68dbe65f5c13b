"""What the Triton backend works out on the host, without Triton: blocks of rows and uploads."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from cluster.errors import ConfigError, KernelInputError
from tests.support.triton import TRITON_RUNS
from trinity_serve.model.batch import ForwardBatch, KvView
from trinity_serve.model.kernels import load_model_kernels
from trinity_serve.model.kernels.cuda.attention_plan import (
    CHUNK_TILES,
    AttentionPlan,
    cut_blocks,
    plan_attention,
)
from trinity_serve.model.kernels.cuda.step_memory import Remembered, upload

CPU = torch.device("cpu")
CHUNK = CHUNK_TILES * 32


def plan(lengths: list[int], rows: list[int], window: int | None = None) -> AttentionPlan:
    """Of the last `rows` rows of sequences of these lengths, at most 5 positions to a block."""
    positions = [np.arange(length - own, length) for length, own in zip(lengths, rows, strict=True)]
    columns = -(-max(lengths) // 32)
    tables = np.arange(len(lengths) * columns, dtype=np.int32).reshape(-1, columns)
    positions_T = np.concatenate(positions).astype(np.int64)
    view = KvView(tables, positions_T)
    starts = np.cumsum([0, *rows]).astype(np.int32)
    batch = ForwardBatch(positions_T, positions_T, starts, view, view, positions_T[:0])
    return plan_attention(batch, tables, window, (tables.size, 5), CPU)


def test_rows_are_cut_into_blocks_of_one_sequence_and_none_is_empty() -> None:
    starts = np.array([0, 7, 7, 8, 18], np.int32)
    assert cut_blocks(starts, 5).tolist() == [
        [0, 0, 5],
        [0, 5, 2],
        [2, 7, 1],
        [3, 8, 5],
        [3, 13, 5],
    ]


def test_the_longest_walk_counts_the_chunks_that_its_rows_see() -> None:
    assert plan([1, CHUNK], [1, 1]).max_chunks == 1
    assert plan([1, CHUNK + 1], [1, 1]).max_chunks == 2
    assert plan([4 * CHUNK], [1], window=CHUNK).max_chunks == 1
    assert plan([4 * CHUNK + 1], [2], window=CHUNK).max_chunks == 2


def test_an_empty_batch_has_no_blocks() -> None:
    starts, none = np.zeros(1, np.int32), np.zeros(0, np.int64)
    tables = np.zeros((0, 1), np.int32)
    view = KvView(tables, none)
    batch = ForwardBatch(none, none, starts, view, view, none)
    assert plan_attention(batch, tables, None, (1, 5), CPU).blocks_N3.shape == (0, 3)


def test_a_block_that_was_freed_behind_the_window_is_not_missed() -> None:
    tables = np.array([[-1, 3]], np.int32)
    positions = np.array([50], np.int64)
    view = KvView(tables, positions)
    batch = ForwardBatch(positions, positions, np.array([0, 1], np.int32), view, view, positions)
    assert plan_attention(batch, tables, 10, (4, 5), CPU).tables_BM.tolist() == [[-1, 3]]
    with pytest.raises(KernelInputError, match="block_tables"):
        plan_attention(batch, tables, 20, (4, 5), CPU)


def test_what_was_made_of_an_object_is_found_until_there_is_no_room() -> None:
    remembered: Remembered[list[int]] = Remembered(room=2)
    sources = [np.arange(size) for size in (1, 2, 3)]
    first = remembered.of((sources[0],), lambda: [0])
    assert remembered.of((sources[0],), lambda: [9]) is first
    assert remembered.of((sources[0], sources[1]), lambda: [1]) == [1]
    assert remembered.of((sources[2],), lambda: [2]) == [2]
    assert remembered.of((sources[0],), lambda: [3]) == [3]


def test_an_upload_keeps_type_and_shape() -> None:
    array = np.arange(12, dtype=np.int32).reshape(3, 4)[:, ::2]
    assert upload(array, CPU).tolist() == array.tolist()
    assert upload(array, CPU).dtype == torch.int32


@pytest.mark.skipif(TRITON_RUNS, reason="Triton runs here")
def test_the_backend_asked_for_by_name_says_what_is_missing() -> None:
    missing = "triton" if importlib.util.find_spec("triton") is None else "no CUDA device"
    with pytest.raises(ConfigError, match=missing):
        load_model_kernels("cuda")
