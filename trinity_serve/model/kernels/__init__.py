"""Norms, rotary and paged attention behind one signature (`base`), chosen by name."""

from __future__ import annotations

import importlib.util
import logging
from importlib import import_module
from typing import Literal

import torch

from cluster.errors import ConfigError
from trinity_serve.model.kernels.base import ModelKernels
from trinity_serve.model.kernels.cpu.kernels import CpuModelKernels
from trinity_serve.model.kernels.reference import ReferenceModelKernels

KernelName = Literal["auto", "reference", "cpu", "cuda"]

logger = logging.getLogger(__name__)


def load_model_kernels(name: KernelName) -> ModelKernels:
    """Return the backend called `name`; `auto` takes the fastest that works here.

    Raises ConfigError when a backend asked for by name cannot be used on this machine.
    """
    if name == "reference":
        return ReferenceModelKernels()
    if name == "cpu":
        return CpuModelKernels()
    if name == "cuda":
        return _cuda()
    return _fastest()


def _cuda() -> ModelKernels:
    """Import the Triton kernels: a plug-in, because triton is not installed everywhere."""
    if importlib.util.find_spec("triton") is None:
        raise ConfigError("kernels", "cuda", "needs the package triton", "auto, cpu, reference")
    kernels: ModelKernels = import_module(f"{__name__}.cuda.kernels").CudaModelKernels()
    return kernels


def _fastest() -> ModelKernels:
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is not None:
        return _cuda()
    try:
        return CpuModelKernels()
    except ConfigError as error:
        # The experts' loader, which runs before, has warned: once is enough.
        logger.info("The reference kernels serve attention: %s", error)
        return ReferenceModelKernels()
