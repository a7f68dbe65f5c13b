"""Norms, rotary and paged attention behind one signature (`base`), chosen by name."""

from __future__ import annotations

import logging
from typing import Literal

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
    if name == "auto":
        return _fastest()
    raise ConfigError("kernels", name, "is not built on this machine", "auto, cpu, reference")


def _fastest() -> ModelKernels:
    try:
        return CpuModelKernels()
    except ConfigError as error:
        # The experts' loader, which runs before, has warned: once is enough.
        logger.info("The reference kernels serve attention: %s", error)
        return ReferenceModelKernels()
