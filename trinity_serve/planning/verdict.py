"""What a comparison means, in words."""

from __future__ import annotations

from collections.abc import Iterator

from trinity_serve.planning.comparison import (
    GRPC_BYTES_PER_S,
    GRPC_LATENCY_S,
    Comparison,
    LayoutPlan,
    engine_streams,
    gpus_needed,
)
from trinity_serve.planning.layouts import LayoutKind
from trinity_serve.planning.pipeline import (
    min_micro_batches,
    separation_speedup,
    tokens_for_arithmetic,
)
from trinity_serve.planning.serve_file import form_notes
from trinity_serve.planning.traffic import amplification

_NEAR = 0.02
"""Two layouts this close are the same, given what the figures are worth."""


def verdict_lines(found: Comparison) -> Iterator[str]:
    """Yield sentences: which layout is faster and why, what is missing, what would change it."""
    yield from _shortfall(found)
    yield from _separation(found)
    mixed = found.plans.get(LayoutKind.MIXED)
    if mixed is not None:
        yield from _mixed(found, mixed)
    yield from _wire(found)
    yield from _alignment(found)
    yield from _pools(found)
    notes = " ".join(form_notes(found.sizes))
    if notes:
        yield notes


def _shortfall(found: Comparison) -> Iterator[str]:
    choice, asked = found.choice, found.workload
    if found.reaches(choice):
        return
    if asked.tokens_per_s is not None:
        yield (
            f"{asked.tokens_per_s:g} tokens/s are not reached: {choice.tokens_per_s:,.0f} with "
            f"memory full. About {_times(asked.tokens_per_s / choice.tokens_per_s)} as many GPUs "
            f"would."
        )
    else:
        yield f"{asked.streams} streams do not fit: {choice.max_streams} do; the rest would wait."


def _separation(found: Comparison) -> Iterator[str]:
    together = found.plans.get(LayoutKind.COLOCATED)
    apart = found.plans.get(LayoutKind.SEPARATE)
    if together is None or apart is None:
        yield from _only_one(found, together)
        return
    ratio = apart.tokens_per_s / together.tokens_per_s
    if found.workload.tokens_per_s is not None and found.reaches(together) and found.reaches(apart):
        faster = min((together, apart), key=lambda plan: plan.step.seconds)
        yield (
            f"Both co-located and separate reach the rate; a token takes "
            f"{together.step.seconds * 1e3:.3g} ms co-located and {apart.step.seconds * 1e3:.3g} "
            f"ms separate: {faster.layout.kind.value} leaves more."
        )
    elif ratio < 1 - _NEAR:
        yield (
            f"Separate expert GPUs give {ratio:.2f} of what the same GPUs give co-located. Memory "
            f"and bandwidth are the same in both, but separate ones read expert weights once per "
            f"micro-batch while one side waits for the other."
        )
        yield from _identity(together, apart)
        yield from _when_separate_pays(found, ratio)
    elif ratio > 1 + _NEAR:
        yield f"Separate expert GPUs give {ratio:.2f} times what the same GPUs give co-located."
    else:
        yield "Co-located and separate are equal within what these figures are worth."
    yield from _bubbles(apart)


def _identity(together: LayoutPlan, apart: LayoutPlan) -> Iterator[str]:
    ranks, shards = apart.layout.num_ranks, apart.layout.num_shards
    if together.layout.num_gpus != ranks + shards:
        return
    batches = apart.streams / ranks / (together.streams / together.layout.num_ranks)
    steps = apart.step.seconds / together.step.seconds
    speedup = separation_speedup(batches, steps, ranks, shards)
    yield (
        f"{speedup:.2f} is {batches:.2f} (sequences per rank) / {steps:.2f} (time per token) × "
        f"{ranks}/{ranks + shards} (GPUs with a rank)."
    )


def _only_one(found: Comparison, together: LayoutPlan | None) -> Iterator[str]:
    context, reserve_bytes = found.workload.context_tokens, found.assumptions.reserve_bytes
    if together is None:
        gpu = found.cluster.gpu
        needed = gpus_needed(found.sizes, gpu, context, reserve_bytes, found.copies)
        more = f"; it takes {needed} of them" if needed else ", however many there are"
        yield f"Experts do not fit on {found.cluster.num_gpus} {gpu.name}{more}."
    elif found.cluster.num_gpus == 1:
        yield "One GPU has no other to be separate from."
    else:
        yield "Separate does not fit: some GPUs would hold ranks alone, too few the experts."


def _when_separate_pays(found: Comparison, ratio: float) -> Iterator[str]:
    sizes, gpu, assumed = found.sizes, found.cluster.gpu, found.assumptions
    config = sizes.config
    fp8 = assumed.fp8_arithmetic and sizes.experts.value == "fp8"
    tokens = tokens_for_arithmetic(
        (gpu.fp8_flops if fp8 else gpu.bf16_flops) * assumed.flops_share,
        gpu.memory_bytes_per_s * assumed.memory_share,
        sizes.experts.bytes_per_weight,
        config.num_experts / config.num_experts_per_tok,
    )
    streams = found.plans[LayoutKind.COLOCATED].streams
    yield (
        f"It pays when experts are bound by arithmetic (from {tokens:,.0f} tokens in flight; here "
        f"{streams:,}), when experts have cheaper machines of their own, when imbalance and "
        f"barriers cost co-located ranks more than {100 * (1 / ratio - 1):.0f} %, or for what is "
        f"not speed: a shard that dies takes no rank with it, and each side scales alone."
    )


def _bubbles(apart: LayoutPlan) -> Iterator[str]:
    step = apart.step
    slower_s = max(step.attention_s, step.experts.seconds)
    needed = min_micro_batches(step.exchange.seconds / 2, slower_s)
    if step.micro_batches < needed:
        yield (
            f"Separate, {needed} micro-batches would hide the exchanges; this has "
            f"{step.micro_batches}."
        )


def _mixed(found: Comparison, mixed: LayoutPlan) -> Iterator[str]:
    best = max(
        (plan for kind, plan in found.plans.items() if kind is not LayoutKind.MIXED),
        key=lambda plan: plan.tokens_per_s,
        default=None,
    )
    hosts = f"{mixed.layout.num_shards} CPU host{'s' if mixed.layout.num_shards > 1 else ''}"
    if best is None:
        yield f"Only with experts on {hosts} does it fit: {mixed.tokens_per_s:,.0f} tokens/s."
        return
    share = mixed.tokens_per_s / best.tokens_per_s
    room = mixed.max_streams / best.max_streams
    yield (
        f"Experts on {hosts} give {share:.2f} of the best rate and room for {room:.2g} times the "
        f"sequences; {mixed.step.binds} binds."
    )


def _wire(found: Comparison) -> Iterator[str]:
    choice = found.choice
    if choice.grpc_tokens_per_s < choice.tokens_per_s * (1 - _NEAR):
        yield (
            f"The rates need rows to travel over the devices' own links. Over gRPC as measured on "
            f"CPUs ({GRPC_BYTES_PER_S / 1e9:g} GB/s, {2e3 * GRPC_LATENCY_S:g} ms there and back) "
            f"{choice.layout.kind.value} gives {choice.grpc_tokens_per_s:,.0f} tokens/s."
        )


def _alignment(found: Comparison) -> Iterator[str]:
    choice = found.choice
    ranks = min(choice.layout.num_ranks, choice.streams)
    if ranks > 1:
        per_rank = choice.streams / ranks / choice.step.micro_batches
        factor = amplification(found.sizes.config, ranks, per_rank)
        yield (
            f"Shards compute what all ranks send for a layer at once; one rank at a time would "
            f"read expert weights {factor:.1f} times as often."
        )


def _pools(found: Comparison) -> Iterator[str]:
    choice = found.choice
    held = engine_streams(choice, found.sizes, found.workload.context_tokens)
    if held < choice.streams:
        yield (
            f"The engine gives sliding layers no more than half of the KV memory: with contexts as "
            f"short as this it holds {held:,} of the {choice.streams:,} sequences."
        )


def _times(factor: float) -> str:
    return f"{factor:.1f} times"
