"""Expert arithmetic behind one signature (`base`), chosen by name."""

from __future__ import annotations

import logging
from typing import Literal

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
    if name == "auto":
        return _fastest()
    raise ConfigError("kernels", name, "is not built on this machine", "auto, cpu, reference")


def _fastest() -> ExpertKernels:
    try:
        return CpuExpertKernels()
    except ConfigError as error:
        logger.warning("The reference kernels serve, slowly: %s", error)
        return ReferenceKernels()
