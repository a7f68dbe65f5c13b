"""Whether Triton's kernels run in this process: on a GPU, or interpreted."""

from __future__ import annotations

import importlib.util
from importlib import import_module

import pytest
import torch


def _runs() -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    return bool(import_module("triton").knobs.runtime.interpret) or torch.cuda.is_available()


TRITON_RUNS = _runs()
needs_triton = pytest.mark.skipif(
    not TRITON_RUNS, reason="no CUDA device, and TRITON_INTERPRET=1 is not set"
)
