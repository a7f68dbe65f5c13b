"""A comparison as lines of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict

from trinity_serve.planning.comparison import Comparison, LayoutPlan
from trinity_serve.planning.figures import DeviceFigures
from trinity_serve.planning.layouts import LayoutKind
from trinity_serve.planning.pipeline import layer_budget_s
from trinity_serve.planning.verdict import verdict_lines

Json = Mapping[str, object]

_LABEL_WIDTH = 27
_CELL_WIDTH = 21


def table_lines(model: str, found: Comparison) -> Iterator[str]:
    """Yield the machines, the assumptions, one column per layout, and the verdict."""
    yield from _head(model, found)
    yield ""
    for label, cell in _rows(found):
        cells = [cell(plan) for plan in found.plans.values()]
        yield f"{label:<{_LABEL_WIDTH}}" + "".join(f"{each:>{_CELL_WIDTH}}" for each in cells)
    yield ""
    for kind, plan in found.plans.items():
        yield f"{kind.value} is bound by: {plan.step.binds}"
    yield ""
    yield from verdict_lines(found)
    yield (
        "Decoding only, as arithmetic: an upper bound until measured. Prompts, kernel launches "
        "and uneven routing cost in addition."
    )


def as_json(model: str, found: Comparison) -> Json:
    """Return everything that the table says, and what it was computed from."""
    return {
        "model": model,
        "weights": {"experts": found.sizes.experts.value, "rest": found.sizes.rest.value},
        "kv_element_bytes": found.sizes.kv_element_bytes,
        "workload": asdict(found.workload),
        "assumptions": asdict(found.assumptions),
        "cluster": asdict(found.cluster),
        "layouts": {kind.value: _plan_json(found, plan) for kind, plan in found.plans.items()},
        "choice": found.choice.layout.kind.value,
        "reached": found.reaches(found.choice),
        "verdict": list(verdict_lines(found)),
    }


def _plan_json(found: Comparison, plan: LayoutPlan) -> Json:
    config = found.sizes.config
    return {
        "ranks": plan.layout.num_ranks,
        "shards": plan.layout.num_shards,
        "nodes": plan.layout.num_nodes,
        "gpus": plan.layout.num_gpus,
        "copies": plan.layout.copies,
        "kv_room_bytes_per_rank": plan.kv_room_bytes,
        "max_streams": plan.max_streams,
        "streams": plan.streams,
        "micro_batches": plan.step.micro_batches,
        "seconds_per_token": plan.step.seconds,
        "tokens_per_s": plan.tokens_per_s,
        "grpc_tokens_per_s": plan.grpc_tokens_per_s,
        "up_bytes_per_token_and_layer": plan.traffic.up_bytes,
        "down_bytes_per_token_and_layer": plan.traffic.down_bytes,
        "wire_bytes_per_s_per_rank": plan.wire_bytes_per_s(config.num_moe_layers),
        "micro_batch_seconds": {
            part.name: part.seconds
            for part in (*plan.step.attention, plan.step.experts, plan.step.exchange)
        },
        "bound_by": plan.step.binds,
    }


def _head(model: str, found: Comparison) -> Iterator[str]:
    sizes, cluster, assumed = found.sizes, found.cluster, found.assumptions
    yield (
        f"{model}: experts {sizes.experts.value} {_gb(sizes.routed_bytes)}, the rest "
        f"{sizes.rest.value} {_gb(sizes.rank_bytes)} per rank"
    )
    context = found.workload.context_tokens
    kv = sizes.kv_bytes(context)
    yield f"KV {8 * sizes.kv_element_bytes} bit: {_gb(kv)} per sequence of {context:,} tokens"
    gpus, nodes = _count(cluster.num_gpus, "GPU"), _count(cluster.num_nodes, "node")
    yield f"{gpus} in {nodes}: {_device(cluster.gpu)}"
    if cluster.num_hosts:
        yield f"for experts in the mixed layout, {cluster.num_hosts} of: {_device(cluster.host)}"
    yield (
        f"taken for reached: {100 * assumed.memory_share:.0f} % of memory bandwidth, "
        f"{100 * assumed.flops_share:.0f} % of arithmetic "
        f"({'FP8' if assumed.fp8_arithmetic else 'bf16'}), {100 * assumed.link_share:.0f} % of "
        f"links; {_gb(assumed.reserve_bytes)} kept back per device; imbalance "
        f"{assumed.imbalance:g}"
    )


def _device(device: DeviceFigures) -> str:
    return (
        f"{device.name}, {device.memory_bytes / 1e9:.0f} GB at "
        f"{device.memory_bytes_per_s / 1e12:.3g} TB/s, {device.bf16_flops / 1e12:.0f} bf16 TFLOP/s"
    )


def _rows(found: Comparison) -> Iterator[tuple[str, Callable[[LayoutPlan], str]]]:
    num_layers = found.sizes.config.num_moe_layers
    yield "", lambda plan: plan.layout.kind.value
    yield "ranks + shards", _places
    yield "GPUs used", lambda plan: f"{plan.layout.num_gpus}"
    yield "copies of an expert", lambda plan: f"{plan.layout.copies}"
    yield "KV room per rank", lambda plan: _gb(plan.kv_room_bytes)
    yield "sequences that fit", lambda plan: f"{plan.max_streams:,}"
    yield "sequences running", lambda plan: f"{plan.streams:,}"
    yield "micro-batches", lambda plan: f"{plan.step.micro_batches}"
    yield "time per token", lambda plan: f"{plan.step.seconds * 1e3:.1f} ms"
    yield "time per layer", lambda plan: f"{1e6 * _layer_s(found, plan):.0f} µs"
    yield "tokens/s", lambda plan: f"{plan.tokens_per_s:,.0f}"
    yield "tokens/s over gRPC", lambda plan: f"{plan.grpc_tokens_per_s:,.0f}"
    yield (
        "bytes per token and layer",
        lambda plan: f"{plan.traffic.up_bytes:,.0f}+{plan.traffic.down_bytes:,.0f}",
    )
    yield "wire per rank", lambda plan: f"{plan.wire_bytes_per_s(num_layers) / 1e9:.3g} GB/s"


def _layer_s(found: Comparison, plan: LayoutPlan) -> float:
    return layer_budget_s(plan.step.seconds, found.sizes.config.num_hidden_layers)


def _places(plan: LayoutPlan) -> str:
    layout = plan.layout
    if layout.kind is LayoutKind.COLOCATED:
        return f"{layout.num_ranks} + {layout.num_shards} in pairs"
    return f"{layout.num_ranks} + {layout.num_shards}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.3g} GB"
