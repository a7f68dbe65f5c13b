"""Two micro-batches give the bits of one, wherever the cut falls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.serving import config_for, open_serving
from trinity_serve.engine.request import SamplingParams
from trinity_serve.model.batch import ForwardBatch, KvView
from trinity_serve.model.decoder import AfmoeModel
from trinity_serve.model.micro_batch import cut


def three_sequences() -> ForwardBatch:
    """Rows 0-4 of one sequence, one decode row of the next, rows 32-35 of a third."""
    positions = np.array([0, 1, 2, 3, 4, 40, 32, 33, 34, 35])
    tables = np.array([[0, -1], [1, 2], [3, 4]], np.int32)
    slots = np.array([0, 1, 2, 3, 4, 72, 128, 129, 130, 131])
    view = KvView(tables, slots)
    starts = np.array([0, 5, 6, 10], np.int32)
    return ForwardBatch(positions + 100, positions, starts, view, view, np.array([4, 5, 9]))


@pytest.mark.parametrize("at", range(1, 10))
def test_a_cut_keeps_every_row_with_its_sequence_and_block_table(at: int) -> None:
    batch = three_sequences()
    rows = [row for part in cut(batch, at) for row in describe(part)]
    assert rows == describe(batch)


def describe(batch: ForwardBatch) -> list[tuple[int, int, int, list[int], bool]]:
    """List token, position, slot, block table and whether logits are wanted, row by row."""
    wanted = set(batch.logits_rows_R.tolist())
    rows = []
    for seq, (start, stop) in enumerate(
        zip(batch.query_start_B1[:-1].tolist(), batch.query_start_B1[1:].tolist(), strict=True)
    ):
        assert stop > start
        for row in range(start, stop):
            token, position = int(batch.token_ids_T[row]), int(batch.positions_T[row])
            slot = int(batch.sliding_kv.slot_mapping_T[row])
            table = batch.global_kv.block_tables_BM[seq].tolist()
            rows.append((token, position, slot, table, row in wanted))
    return rows


def test_outputs_of_split_steps_are_those_of_whole_ones(tiny_checkpoint: Path) -> None:
    rng = np.random.default_rng(3)
    prompts = [rng.integers(13, 512, int(n)).tolist() for n in (1, 70, 33, 5)]
    params = SamplingParams(max_tokens=12, seed=5, ignore_eos=True)
    outcomes = []
    for micro_batch_rows in (None, 2):
        serving = open_serving(config_for(tiny_checkpoint, num_shards=3))
        model = serving.runner.model
        assert isinstance(model, AfmoeModel)
        model.micro_batch_rows = micro_batch_rows
        tokens = serving.run(prompts, params)
        assert (model.num_split_steps > 0) == (micro_batch_rows is not None)
        outcomes.append((tokens, [serving.sampler.of(prompt) for prompt in prompts]))
    (whole, whole_logits), (split, split_logits) = outcomes
    assert whole == split
    assert all(torch.equal(a, b) for a, b in zip(whole_logits, split_logits, strict=True))
