"""What one shard process is told: settled once, passed down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cluster.model_config import AfmoeConfig
from cluster.tls import TlsFiles
from cluster.types import ComputeDtype, Fingerprint, ShardSlice
from experts.checkpoint import Checkpoint
from experts.kernels import KernelName
from experts.kernels.base import ExpertKernels


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """Options of ``python -m experts``."""

    model: str
    """A local folder or a Hub id."""
    part: ShardSlice
    listen: tuple[str, ...]
    """``unix:/folder/socket`` and ``grpc://host:port``; port 0 is any free one."""
    kernels: KernelName = "auto"
    dtype: ComputeDtype | Literal["auto"] = "auto"
    token: str = ""
    """What ranks must present; empty asks for nothing."""
    num_threads: int = 1
    tls: TlsFiles | None = None


def settle_dtype(wanted: ComputeDtype | Literal["auto"], model: AfmoeConfig) -> ComputeDtype:
    """Return the compute dtype; `auto` is the checkpoint's own."""
    return model.dtype if wanted == "auto" else wanted


def fingerprint_of(
    checkpoint: Checkpoint, kernels: ExpertKernels, dtype: ComputeDtype
) -> Fingerprint:
    """Return what ranks and shards compare: equal ones give equal bits for equal calls.

    Raises CheckpointError.
    """
    return Fingerprint(checkpoint.fingerprint(dtype), f"{kernels.bit_class}/{dtype}")
