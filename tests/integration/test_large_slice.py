"""The true shape of Large, few layers of it, end to end on quantised weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experts.checkpoint import Checkpoint
from experts.dry_run import plan_loads
from experts.quantised.scheme import Form
from tests.support.serving import config_for, open_serving
from trinity_serve.engine.request import SamplingParams
from trinity_serve.synthetic import PRESETS, Recipe, slice_of, write_checkpoint

LARGE_SLICE = replace(
    slice_of(PRESETS["large"], num_layers=4, num_dense_layers=2, num_experts=6),
    vocab_size=2048,
    max_position_embeddings=512,
)
"""Hidden 3072, 48/8 heads of 128, dense 12288, experts of 3072; the last layer is global."""

PROMPT = tuple(range(20, 90))
PARAMS = SamplingParams(max_tokens=3, seed=5, temperature=0.8, top_p=0.9, ignore_eos=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "checkpoint"
    return write_checkpoint(LARGE_SLICE, path, recipe=Recipe(Form.FP8_BLOCK, scale_dtype="F32"))


def outcome(checkpoint: Path, num_shards: int, **engine_sizes: int) -> tuple[list[int], Tensor]:
    serving = open_serving(config_for(checkpoint, num_shards=num_shards), **engine_sizes)
    return serving.run([PROMPT], PARAMS)[0], serving.sampler.of(PROMPT)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_shards_and_chunks_leave_the_bits_of_large_as_they_are(checkpoint: Path) -> None:
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    assert size < 1.5e9
    assert [load.num_experts for load in plan_loads(Checkpoint.open(str(checkpoint)), 3)] == [4] * 3
    tokens, logits = outcome(checkpoint, 1)
    assert torch.isfinite(logits).all()
    assert len(tokens) == 3
    for num_shards, chunk in ((3, 512), (2, 33)):
        their_tokens, their_logits = outcome(checkpoint, num_shards, max_prefill_chunk=chunk)
        assert their_tokens == tokens
        assert torch.equal(their_logits, logits)
