"""What a process computes with. Ranks and shards settle it in the same way, and compare."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.model_config import AfmoeConfig
from cluster.types import ComputeDtype, Fingerprint
from experts.checkpoint import Checkpoint
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
        """Resolve `auto` for dtype and kernels. Raises ConfigError for what is not to be had."""
        model, wanted = checkpoint.config, config.model.dtype
        dtype = model.dtype if wanted == "auto" else wanted
        kernels = load_expert_kernels(config.model.kernels)
        fingerprint = Fingerprint(model.fingerprint(dtype), f"{kernels.bit_class}/{dtype}")
        return cls(model, dtype, kernels, fingerprint)
