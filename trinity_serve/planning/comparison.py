"""Layouts side by side: for each kind the best that fits, at the asked load."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cluster.errors import ConfigError
from trinity_serve.planning.figures import DeviceFigures
from trinity_serve.planning.layouts import Cluster, Layout, LayoutKind, candidates, colocated
from trinity_serve.planning.sizes import ModelSizes
from trinity_serve.planning.step import Assumptions, Step, StepModel
from trinity_serve.planning.traffic import LayerTraffic
from trinity_serve.planning.workload import Workload

GRPC_BYTES_PER_S = 0.75e9
"""One stream of large messages each way, measured on two CPU cores."""
GRPC_LATENCY_S = 225e-6
"""Half of a round trip of small messages, measured likewise."""


@dataclass(frozen=True, slots=True)
class LayoutPlan:
    """One layout at one load."""

    layout: Layout
    streams: int
    max_streams: int
    kv_room_bytes: float
    """Per rank."""
    step: Step
    traffic: LayerTraffic
    """Per token and layer, between devices."""
    grpc_step: Step
    """The same if rows went over gRPC instead of the devices' own links."""

    @property
    def tokens_per_s(self) -> float:
        """Over all streams."""
        return self.streams / self.step.seconds

    @property
    def grpc_tokens_per_s(self) -> float:
        """Over all streams, with gRPC between ranks and shards."""
        return self.streams / self.grpc_step.seconds

    def wire_bytes_per_s(self, num_moe_layers: int) -> float:
        """Bytes per second in both directions over the links of one rank."""
        per_token = self.traffic.total_bytes * num_moe_layers
        return self.tokens_per_s * per_token / self.layout.num_ranks


def engine_streams(plan: LayoutPlan, sizes: ModelSizes, context_tokens: int) -> int:
    """Return how many sequences the engine's two KV pools hold, sliding layers at most in half."""
    per_sequence = sizes.sliding_kv_bytes(context_tokens)
    if per_sequence == 0:
        return plan.max_streams
    held = int(plan.layout.num_ranks * plan.kv_room_bytes / 2 / per_sequence)
    return min(plan.max_streams, held)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; a kind that does not fit is missing from `plans`."""

    sizes: ModelSizes
    cluster: Cluster
    workload: Workload
    assumptions: Assumptions
    copies: int
    plans: dict[LayoutKind, LayoutPlan]

    @property
    def choice(self) -> LayoutPlan:
        """The layout with the most tokens per second; of those that give a rate the quickest."""
        return max(self.plans.values(), key=lambda plan: _merit(plan, self.workload))

    def reaches(self, plan: LayoutPlan) -> bool:
        """Whether a plan serves the asked streams or rate."""
        asked = self.workload
        if asked.tokens_per_s is not None:
            return plan.tokens_per_s >= asked.tokens_per_s
        return asked.streams is None or plan.streams >= asked.streams


def compare(
    sizes: ModelSizes,
    cluster: Cluster,
    workload: Workload,
    assumptions: Assumptions,
    copies: int = 1,
) -> Comparison:
    """Plan every kind of layout that fits.

    Raises:
        ConfigError: none fits; it says how many of these GPUs it would take.
    """
    plans: dict[LayoutKind, LayoutPlan] = {}
    for layout in candidates(cluster, copies):
        plan = plan_layout(StepModel(sizes, layout, assumptions), workload)
        if plan is None:
            continue
        best = plans.get(layout.kind)
        if best is None or _merit(plan, workload) > _merit(best, workload):
            plans[layout.kind] = plan
    if not plans:
        raise _nothing_fits(sizes, cluster, workload, assumptions, copies)
    ordered = {kind: plans[kind] for kind in LayoutKind if kind in plans}
    return Comparison(sizes, cluster, workload, assumptions, copies, ordered)


def plan_layout(model: StepModel, workload: Workload) -> LayoutPlan | None:
    """Return a layout at the asked load, or as near to it as it comes; None if it does not fit."""
    layout, context = model.layout, workload.context_tokens
    reserve_bytes = model.assumptions.reserve_bytes
    most = layout.max_streams(model.sizes, reserve_bytes, context)
    if most == 0:
        return None
    streams = most
    if workload.streams is not None:
        streams = min(most, workload.streams)
    elif workload.tokens_per_s is not None:
        wanted = workload.tokens_per_s
        streams = _fewest(most, lambda count: count / model.best(count, context).seconds >= wanted)
    return LayoutPlan(
        layout=layout,
        streams=streams,
        max_streams=most,
        kv_room_bytes=layout.kv_room_bytes(model.sizes, reserve_bytes),
        step=model.best(streams, context),
        traffic=model.traffic,
        grpc_step=_over_grpc(model).best(streams, context),
    )


def gpus_needed(
    sizes: ModelSizes, gpu: DeviceFigures, context_tokens: int, reserve_bytes: float, copies: int
) -> int | None:
    """Return the fewest GPUs that hold one sequence, or None if no number does."""
    for count in range(1, sizes.config.num_experts + 1):
        rank_alone = Layout(LayoutKind.SEPARATE, 1, max(1, count - 1), gpu, gpu, 1, copies)
        layouts = (colocated(gpu, count, 1, copies), rank_alone)
        for layout in layouts[: 1 if count == 1 else 2]:
            if layout.max_streams(sizes, reserve_bytes, context_tokens):
                return count
    return None


def _merit(plan: LayoutPlan, workload: Workload) -> tuple[float, float]:
    """Return what layouts are compared by: the rate as far as it is asked for, then the time."""
    asked = workload.tokens_per_s
    rate = plan.tokens_per_s if asked is None else min(asked, plan.tokens_per_s)
    return rate, -plan.step.seconds


def _fewest(most: int, enough: Callable[[int], bool]) -> int:
    """Return the least count from 1 to `most` that is enough; `most` if none is."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _over_grpc(model: StepModel) -> StepModel:
    def limited(device: DeviceFigures) -> DeviceFigures:
        return dataclasses.replace(
            device,
            node_bytes_per_s=min(device.node_bytes_per_s, GRPC_BYTES_PER_S),
            network_bytes_per_s=min(device.network_bytes_per_s, GRPC_BYTES_PER_S),
            node_latency_s=max(device.node_latency_s, GRPC_LATENCY_S),
            network_latency_s=max(device.network_latency_s, GRPC_LATENCY_S),
        )

    layout = dataclasses.replace(
        model.layout,
        rank_device=limited(model.layout.rank_device),
        shard_device=limited(model.layout.shard_device),
    )
    return dataclasses.replace(model, layout=layout)


def _nothing_fits(
    sizes: ModelSizes,
    cluster: Cluster,
    workload: Workload,
    assumptions: Assumptions,
    copies: int,
) -> ConfigError:
    context, reserve_bytes = workload.context_tokens, assumptions.reserve_bytes
    gpu = cluster.gpu
    needed = gpus_needed(sizes, gpu, context, reserve_bytes, copies)
    problem = "; ".join(_shortages(sizes, cluster, context, reserve_bytes, copies))
    if needed is None:
        supported = "GPUs with more memory, FP8 or 4-bit experts, or a shorter context"
    else:
        supported = f"{needed} or more {gpu.name}, or smaller experts (fp8, int4, nvfp4)"
    return ConfigError("plan", f"--gpus {cluster.num_gpus}x{gpu.name}", problem, supported)


def _shortages(
    sizes: ModelSizes, cluster: Cluster, context_tokens: int, reserve_bytes: float, copies: int
) -> Iterator[str]:
    free = cluster.num_gpus * (cluster.gpu.memory_bytes - reserve_bytes) / 1e9
    experts = copies * sizes.routed_bytes / 1e9
    yield (
        f"experts take {experts:.0f} GB, and each rank {sizes.rank_bytes / 1e9:.1f} GB and "
        f"{sizes.kv_bytes(context_tokens) / 1e9:.2g} GB for one sequence"
    )
    yield f"{free:.0f} GB are free, {reserve_bytes / 1e9:g} GB per device kept back"
