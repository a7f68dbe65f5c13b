"""Expert arithmetic behind one signature (`base`), chosen by name."""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec
from typing import Literal

import torch

from cluster.errors import ConfigError
from experts.kernels.base import ExpertKernels
from experts.kernels.cpu.kernels import CpuExpertKernels
from experts.kernels.reference import ReferenceKernels

KernelName = Literal["auto", "reference", "cpu", "cuda"]

logger = logging.getLogger(__name__)


def load_expert_kernels(name: KernelName) -> ExpertKernels:
    """Return the backend called `name`; `auto` takes the fastest that works here.

    Raises ConfigError when a backend asked for by name cannot be used on this machine.
    """
    if name == "reference":
        return ReferenceKernels()
    if name == "cpu":
        return CpuExpertKernels()
    return _cuda() if name == "cuda" else _fastest()


def _cuda() -> ExpertKernels:
    """Import Triton's kernels where they are asked for: no CPU machine needs Triton."""
    if find_spec("triton") is None:
        found = "Triton is not installed"
        raise ConfigError("kernels", "cuda", found, "an installation with it, or cpu or reference")
    kernels: ExpertKernels = import_module("experts.kernels.cuda.kernels").CudaExpertKernels()
    return kernels


def _fastest() -> ExpertKernels:
    if torch.cuda.is_available() and find_spec("triton") is not None:
        return _cuda()
    try:
        return CpuExpertKernels()
    except ConfigError as error:
        logger.warning("The reference kernels serve, slowly: %s", error)
        return ReferenceKernels()
