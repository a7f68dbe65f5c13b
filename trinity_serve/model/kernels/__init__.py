"""Norms, rotary and paged attention behind one signature (`base`), chosen by name."""

from __future__ import annotations

from typing import Literal

from cluster.errors import ConfigError
from trinity_serve.model.kernels.base import ModelKernels
from trinity_serve.model.kernels.reference import ReferenceModelKernels

KernelName = Literal["auto", "reference", "cpu", "cuda"]


def load_model_kernels(name: KernelName) -> ModelKernels:
    """Return the backend called `name`; `auto` takes the fastest that works here.

    Raises ConfigError when a backend asked for by name cannot be used on this machine.
    """
    if name in ("auto", "reference"):
        return ReferenceModelKernels()
    raise ConfigError("kernels", name, "is not built on this machine", "auto, reference")
