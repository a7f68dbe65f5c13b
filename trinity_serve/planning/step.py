"""How long one decode step takes in a layout, what binds it, and what it moves.

Each kind of work takes the longer of reading its bytes and doing its operations. A step of one
micro-batch is a chain: attention, rows out, experts, rows back, layer by layer. With m
micro-batches one's rows are away while another computes; then the slower side counts, m times,
unless the chain of one micro-batch is longer still. Source: MegaScale-Infer's pipeline conditions.
"""

from __future__ import annotations

from dataclasses import dataclass

from trinity_serve.planning.layouts import Layout, LayoutKind
from trinity_serve.planning.sizes import ModelSizes, WeightForm
from trinity_serve.planning.traffic import LayerTraffic, activated_share, layer_traffic


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What programs reach of nominal figures, and what is left out of the arithmetic."""

    memory_share: float = 0.8
    """Of memory bandwidth."""
    flops_share: float = 0.7
    """Of arithmetic."""
    link_share: float = 0.8
    """Of a link's bandwidth."""
    reserve_bytes: float = 12e9
    """Per device, for the runtime, graphs and buffers."""
    imbalance: float = 1.0
    """Load of the busiest shard over the mean."""
    host_s: float = 0.0
    """Per step, that no device work hides."""
    max_micro_batches: int = 2
    """The engine's most."""
    fp8_arithmetic: bool = False
    """FP8 weights are multiplied as FP8; otherwise widened to bf16 first."""


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of work in one micro-batch's way through all layers."""

    name: str
    seconds: float
    limit: str
    """What binds it, in words."""


@dataclass(frozen=True, slots=True)
class Step:
    """One decode step of every stream."""

    seconds: float
    micro_batches: int
    attention: tuple[Part, ...]
    experts: Part
    exchange: Part
    binds: str
    """What the step's time is mostly made of."""

    @property
    def attention_s(self) -> float:
        """One micro-batch's time on a rank."""
        return sum(part.seconds for part in self.attention)


@dataclass(frozen=True, slots=True)
class StepModel:
    """One model in one layout."""

    sizes: ModelSizes
    layout: Layout
    assumptions: Assumptions

    @property
    def traffic(self) -> LayerTraffic:
        """Bytes per token and layer that leave a device."""
        layout = self.layout
        full = layer_traffic(self.sizes.config, layout.num_shards)
        share = layout.remote_share
        return LayerTraffic(full.up_bytes * share, full.down_bytes * share)

    def best(self, streams: int, context_tokens: int) -> Step:
        """Return the step of the number of micro-batches that is fastest."""
        per_rank = max(1, streams // self.layout.num_ranks)
        most = min(self.assumptions.max_micro_batches, per_rank)
        steps = [self.step(streams, context_tokens, count + 1) for count in range(most)]
        return min(steps, key=lambda step: step.seconds)

    def step(self, streams: float, context_tokens: int, micro_batches: int) -> Step:
        """Return the step in which `streams` sequences get a token each."""
        tokens = streams / micro_batches
        rank_tokens = max(1.0, streams / self.layout.num_ranks) / micro_batches
        attention = self._attention(rank_tokens, context_tokens)
        experts, exchange = self._experts(tokens), self._exchange(tokens)
        attention_s = sum(part.seconds for part in attention)
        chain_s = attention_s + experts.seconds + exchange.seconds
        slower: tuple[Part, ...]
        if self.layout.kind is LayoutKind.COLOCATED:
            busy_s = micro_batches * (attention_s + experts.seconds)
            slower = (*attention, experts)
        else:
            busy_s = micro_batches * max(attention_s, experts.seconds)
            slower = attention if attention_s > experts.seconds else (experts,)
        waits = chain_s > busy_s and micro_batches > 1
        seconds = max(chain_s, busy_s) + self.assumptions.host_s
        parts = (*attention, experts, exchange) if chain_s > busy_s else slower
        binds = max(parts, key=lambda part: part.seconds).limit
        if waits:
            binds = f"a micro-batch's way there and back, mostly {binds}"
        return Step(seconds, micro_batches, attention, experts, exchange, binds)

    def _attention(self, tokens: float, context_tokens: int) -> tuple[Part, Part]:
        sizes = self.sizes
        weights = self._roofline(
            "rank weights", sizes.rank_read_bytes, tokens * sizes.rank_flops, form=sizes.rest
        )
        kv = self._roofline(
            "KV",
            tokens * sizes.kv_bytes(context_tokens),
            tokens * sizes.attention_flops(context_tokens),
            form=WeightForm.BF16,
        )
        return weights, kv

    def _experts(self, tokens: float) -> Part:
        sizes, layout = self.sizes, self.layout
        share = activated_share(sizes.config, tokens)
        # Every expert has one copy that is asked first, so that ranks share a read of it.
        read_bytes = sizes.slice_bytes(layout.num_shards) * share
        flops = tokens * sizes.expert_flops / layout.num_shards
        part = self._roofline("expert weights", read_bytes, flops, form=sizes.experts)
        return Part(part.name, part.seconds * self.assumptions.imbalance, part.limit)

    def _roofline(self, name: str, num_bytes: float, flops: float, form: WeightForm) -> Part:
        layout, assumed = self.layout, self.assumptions
        device = layout.shard_device if name == "expert weights" else layout.rank_device
        fp8 = assumed.fp8_arithmetic and form is WeightForm.FP8
        peak = device.fp8_flops if fp8 else device.bf16_flops
        memory_s = num_bytes / (device.memory_bytes_per_s * assumed.memory_share)
        compute_s = flops / (peak * assumed.flops_share)
        if compute_s > memory_s:
            return Part(name, compute_s, f"arithmetic ({name})")
        return Part(name, memory_s, f"memory bandwidth ({name})")

    def _exchange(self, tokens: float) -> Part:
        layout = self.layout
        num_layers = self.sizes.config.num_moe_layers
        latency_s = 2 * num_layers * self._latency_s() if layout.remote_share else 0.0
        carry_s = tokens * num_layers * self.traffic.total_bytes * self._seconds_per_byte()
        limit = "latency of exchanges" if latency_s > carry_s else "links between devices"
        return Part("exchange", latency_s + carry_s, limit)

    def _latency_s(self) -> float:
        devices = (self.layout.rank_device, self.layout.shard_device)
        if self.layout.num_nodes > 1:
            return max(device.network_latency_s for device in devices)
        return max(device.node_latency_s for device in devices)

    def _seconds_per_byte(self) -> float:
        """Time per byte of all traffic: the busiest of both sides' links inside and between nodes.

        Rows that stay on a co-located device are not in the traffic; of the others a share of
        1 − 1/nodes is taken to leave the node.
        """
        layout = self.layout
        away = layout.network_share
        sides = (
            (layout.rank_device, layout.num_ranks),
            (layout.shard_device, layout.num_shards),
        )
        slowest_s = max(
            max((1 - away) / device.node_bytes_per_s, away / device.network_bytes_per_s) / count
            for device, count in sides
        )
        return slowest_s / self.assumptions.link_share
