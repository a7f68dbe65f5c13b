"""Grouped SwiGLU in Large's shape reaches its shares of the GPU's copy and matmul rates."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from experts.kernels.cuda.kernels import CudaExpertKernels
from experts.quantised.scheme import Form, Scheme
from tests.bench import bench_gpu_kernels as bench
from tests.bench.gpu_clock import copy_rate

pytestmark = pytest.mark.bench
REPEATS = 20
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_bench_checks_itself_and_says_so(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert bench.main([]) == 0
    assert "nothing was measured" in capfd.readouterr().out


@needs_gpu
@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("scheme", [None, Scheme(Form.FP8_BLOCK)], ids=str)
def test_weights_are_read_at_most_of_copy_bandwidth(scheme: Scheme | None, rows: int) -> None:
    kernels = CudaExpertKernels()
    table = bench.table_of(kernels, bench.LARGE, scheme)
    assert bench.decode_rate(kernels, table, rows, REPEATS) >= 0.85 * copy_rate(REPEATS)


@needs_gpu
def test_many_rows_are_computed_at_most_of_torchs_matmul_rate() -> None:
    kernels = CudaExpertKernels()
    table = bench.table_of(kernels, bench.LARGE, None)
    rate = bench.prefill_rate(kernels, table, 512, REPEATS)
    assert rate >= 0.7 * bench.matmul_rate(REPEATS)
