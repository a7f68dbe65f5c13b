"""Put a rank's model together: weights, KV pools, and the segments its backend runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.model_config import AfmoeConfig
from experts.kernels.base import ExpertKernels
from experts.kernels.cpu.kernels import CpuExpertKernels
from router.dispatcher import Planner
from router.plan import plan_rows
from trinity_serve.model.decoder import AfmoeModel, ExpertDispatch, place_layers
from trinity_serve.model.fused.cpu import CpuSegments
from trinity_serve.model.fused.planner import CpuPlanner
from trinity_serve.model.kernels.base import ModelKernels
from trinity_serve.model.kernels.cpu.kernels import CpuModelKernels
from trinity_serve.model.kv_sizing import KvSizes
from trinity_serve.model.segments import LayerPlace, PlainSegments, Segments
from trinity_serve.model.weights import ModelWeights


@dataclass(frozen=True)
class ModelBackend:
    """The kernels of one rank."""

    experts: ExpertKernels
    model: ModelKernels

    @property
    def planner(self) -> Planner:
        """Return what groups a layer's rows by shard and expert."""
        if isinstance(self.model, CpuModelKernels):
            return CpuPlanner(self.model.library)
        return plan_rows

    def segments(
        self, config: AfmoeConfig, weights: ModelWeights, places: Sequence[LayerPlace]
    ) -> Segments:
        """Return the pieces of a forward pass: fused where both backends are C."""
        if isinstance(self.model, CpuModelKernels) and isinstance(self.experts, CpuExpertKernels):
            return CpuSegments(config, weights, (self.experts, self.model), places)
        return PlainSegments(config, weights, (self.experts, self.model), places)


@dataclass(frozen=True)
class ModelSizes:
    """KV pools, the longest sequence in tokens, and when a step runs as two micro-batches."""

    kv: KvSizes
    max_model_len: int
    micro_batch_rows: int | None = None


def assemble_model(
    config: AfmoeConfig,
    weights: ModelWeights,
    backend: ModelBackend,
    dispatch: ExpertDispatch,
    sizes: ModelSizes,
) -> AfmoeModel:
    """Allocate the KV pools and return the model."""
    dtype = weights.embedding_VD.dtype
    places = place_layers(config, backend.model, sizes.kv, sizes.max_model_len, dtype)
    segments = backend.segments(config, weights, places)
    return AfmoeModel(config, segments, dispatch, sizes.micro_batch_rows)
