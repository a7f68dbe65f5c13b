"""Shards and rank with both Triton backends give the reference's tokens.

Runs where Triton runs: on a GPU, or through its interpreter (see test_kernels_interpreted.py).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import GLOBAL, SLIDING, TINY_CONFIG
from tests.support.serving import config_for, open_serving
from tests.support.triton import needs_triton
from trinity_serve.engine.request import SamplingParams
from trinity_serve.synthetic import write_checkpoint

pytestmark = needs_triton

THIN = replace(
    TINY_CONFIG,
    vocab_size=256,
    num_hidden_layers=3,
    layer_types=(SLIDING, SLIDING, GLOBAL),
    sliding_window=24,
    num_experts=4,
    num_experts_per_tok=2,
)
"""A dense layer, and a sliding and a global one with experts; the prompts pass the window's end."""
PROMPTS = [[5 + 7 * i % 200 for i in range(30)], [11, 12, 13]]


@pytest.mark.parametrize("temperature", [0.0, pytest.param(0.9, marks=pytest.mark.slow)])
def test_tokens_are_those_of_the_reference_backends(temperature: float, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(THIN, tmp_path / "thin")
    params = SamplingParams(4, seed=5, temperature=temperature, top_p=0.95, ignore_eos=True)
    tokens = {
        kernels: open_serving(
            config_for(checkpoint, num_shards=2, kernels=kernels, dtype="float32")
        ).run(PROMPTS, params)
        for kernels in ("cuda", "reference")
    }
    assert tokens["cuda"] == tokens["reference"]
    assert [len(output) for output in tokens["cuda"]] == [4, 4]
