"""The counting of bench_alignment, on real processes and not timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from experts.checkpoint import Checkpoint
from tests.bench.bench_alignment import Counted, Work, count, figures


@pytest.mark.slow
def test_a_shard_of_two_ranks_reads_no_more_than_their_calls_ask_for(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = Checkpoint.open(str(tiny_checkpoint)).config
    counted, took_s = count(Work(str(tiny_checkpoint), f"unix:{tmp_path}/s", 4, 40), ranks=2)
    rows_per_step = 4 * model.num_experts_per_tok * model.num_moe_layers
    # The first rank to be done has made 39 steps; the other may have made fewer.
    assert counted.rows >= 39 * rows_per_step
    assert counted.products < counted.calls
    assert counted.experts_read < counted.experts_called
    found = {figure.bench: figure.value for figure in figures(counted, took_s, model)}
    assert found["expert_mb_per_token"] < found["expert_mb_per_token_unshared"]
    assert found["calls_per_product"] > 1.0


def test_what_came_before_is_not_counted() -> None:
    assert Counted(9, 5, 4, 8, 9) - Counted(1, 1, 1, 2, 3) == Counted(8, 4, 3, 6, 6)
