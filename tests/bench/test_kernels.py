"""The kernels' targets on an idle machine: at the memory limit, and never behind torch."""

from __future__ import annotations

import pytest

from tests.bench.bench_kernels import measure

pytestmark = pytest.mark.bench


@pytest.mark.timeout(600)
@pytest.mark.parametrize("threads", [1, 2])
def test_few_rows_are_bound_by_memory_and_many_are_no_slower_than_torch(threads: int) -> None:
    _, results = measure(threads, repeats=20)
    linear = [result for result in results if result.op.startswith("linear")]
    bf16 = [result for result in linear if result.dtype == "bfloat16"]
    for result in results:
        print(result)
    assert min(result.share_of_read for result in bf16 if result.rows <= 8) >= 0.9
    assert min(result.torch_ratio or 0.0 for result in bf16 if result.rows >= 64) >= 1.0
