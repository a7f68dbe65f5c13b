"""Expert arithmetic behind one signature (`base`), chosen by name."""

from __future__ import annotations

from typing import Literal

from cluster.errors import ConfigError
from experts.kernels.base import ExpertKernels
from experts.kernels.reference import ReferenceKernels

KernelName = Literal["auto", "reference", "cpu", "cuda"]


def load_expert_kernels(name: KernelName) -> ExpertKernels:
    """Return the backend called `name`; `auto` takes the fastest that works here.

    Raises ConfigError when a backend asked for by name cannot be used on this machine.
    """
    if name in ("auto", "reference"):
        return ReferenceKernels()
    raise ConfigError("kernels", name, "is not built on this machine", "auto, reference")
