"""Whether Triton's kernels run in this process: on a GPU, or interpreted."""

from __future__ import annotations

import importlib.util
from importlib import import_module

import pytest
import torch

_HERE = importlib.util.find_spec("triton") is not None
INTERPRETED = _HERE and bool(import_module("triton").knobs.runtime.interpret)
TRITON_RUNS = _HERE and (INTERPRETED or torch.cuda.is_available())
needs_triton = pytest.mark.skipif(
    not TRITON_RUNS, reason="no CUDA device, and TRITON_INTERPRET=1 is not set"
)
