"""What a process computes with. Ranks and shards settle it in the same way, and compare."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.model_config import AfmoeConfig
from cluster.types import ComputeDtype, Fingerprint
from experts.checkpoint import Checkpoint
from experts.config import fingerprint_of, settle_dtype
from experts.kernels import load_expert_kernels
from experts.kernels.base import ExpertKernels
from trinity_serve.config import ServeConfig


@dataclass(frozen=True)
class Arithmetic:
    """What is computed with: settled once per process, the same for ranks and shards."""

    config: AfmoeConfig
    dtype: ComputeDtype
    kernels: ExpertKernels
    fingerprint: Fingerprint

    @classmethod
    def settle(cls, config: ServeConfig, checkpoint: Checkpoint) -> Arithmetic:
        """Resolve `auto` for dtype and kernels. Raises ConfigError for what is not to be had.

        Raises CheckpointError when the weights that tell the checkpoint cannot be read.
        """
        dtype = settle_dtype(config.model.dtype, checkpoint.config)
        kernels = load_expert_kernels(config.model.kernels)
        fingerprint = fingerprint_of(checkpoint, kernels, dtype)
        return cls(checkpoint.config, dtype, kernels, fingerprint)
