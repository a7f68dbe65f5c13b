"""Decode attention at 128K context reaches four fifths of the GPU's copy rate."""

from __future__ import annotations

import pytest
import torch

from tests.bench.bench_gpu_attention import attention_rate, main, shape_of
from tests.bench.gpu_clock import copy_rate
from trinity_serve.model.kernels import load_model_kernels

pytestmark = pytest.mark.bench


def test_without_a_gpu_the_bench_checks_itself_and_says_so(
    capfd: pytest.CaptureFixture[str],
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main([]) == 0
    assert "nothing was measured" in capfd.readouterr().out


@pytest.mark.parametrize("streams", [1, 4])
def test_decode_attention_reads_at_four_fifths_of_copy_bandwidth(streams: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    kernels = load_model_kernels("cuda")
    rate = attention_rate(kernels, shape_of("large"), 131_072, streams, repeats=20)
    assert rate >= 0.8 * copy_rate(repeats=20)
