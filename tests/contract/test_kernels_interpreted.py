"""The suites of the Triton kernels through Triton's interpreter, where no GPU runs them.

A process of its own, because `TRITON_INTERPRET` must be set before Triton is imported, and what is
imported then cannot be compiled.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SUITES = {
    "experts": (
        "tests/contract/test_kernels_experts.py",
        "tests/contract/test_kernels_experts_cuda.py",
    ),
    "model": (
        "tests/contract/test_kernels_model.py",
        "tests/contract/test_kernels_model_cuda.py",
        "tests/contract/test_vocabulary_draw_cuda.py",
        "tests/integration/test_cuda_serving.py",
    ),
}


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the suites run on the GPU here")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("package", SUITES)
def test_the_triton_kernels_pass_their_suites_interpreted(package: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-k", "cuda", "-m", "not slow"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "--durations=0", *SUITES[package]],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
