"""What routing does to reads and wires: experts hit, shards per token, bytes per token and layer.

All expectations are for uniform routing; K different experts per token are drawn without
replacement. Real routing is less even: fewer experts are hit, and the busiest shard has more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.model_config import AfmoeConfig
from trinity_serve.planning.sizes import WeightForm

_SCALE_GROUP = 128


def activated_share(config: AfmoeConfig, tokens: float) -> float:
    """Return which share of a layer's experts `tokens` rows reach: 1 − (1 − K/E)^tokens."""
    missed = math.pow(1.0 - config.num_experts_per_tok / config.num_experts, tokens)
    return 1.0 - missed


def amplification(config: AfmoeConfig, clients: int, tokens: float) -> float:
    """Return how often too much weights are read when ranks do not arrive together.

    `clients` ranks of `tokens` rows each, computed one by one, against all of them at once.
    """
    together = activated_share(config, clients * tokens)
    return clients * activated_share(config, tokens) / together


def shards_per_token(config: AfmoeConfig, num_shards: int) -> float:
    """Return how many different shards hold a token's K experts, of equal slices."""
    elsewhere = config.num_experts * (1 - 1 / num_shards)
    untouched = 1.0
    for drawn in range(config.num_experts_per_tok):
        untouched *= max(0.0, elsewhere - drawn) / (config.num_experts - drawn)
    return num_shards * (1.0 - untouched)


def row_bytes(config: AfmoeConfig, form: WeightForm) -> float:
    """Return the bytes of one row of activations: bf16, or FP8 with a scale per 128 channels."""
    if form is WeightForm.FP8:
        return config.hidden_size * (1 + 4 / _SCALE_GROUP)
    return config.hidden_size * 2.0


@dataclass(frozen=True, slots=True)
class LayerTraffic:
    """Bytes per token and MoE layer, headers left out."""

    up_bytes: float
    """To the shards: each gets a token once."""
    down_bytes: float
    """Back from them."""

    @property
    def total_bytes(self) -> float:
        """Both directions."""
        return self.up_bytes + self.down_bytes


def layer_traffic(
    config: AfmoeConfig,
    num_shards: int,
    *,
    up: WeightForm = WeightForm.BF16,
    reduced: bool = False,
) -> LayerTraffic:
    """Return what a token moves when all shards are remote.

    `reduced`: a shard sums its experts' outputs and sends one row per token. The served path does
    not: outputs come back one by one, so that the order of their sum never depends on who holds
    what.
    """
    shards = shards_per_token(config, num_shards)
    down_rows = shards if reduced else config.num_experts_per_tok
    return LayerTraffic(
        shards * row_bytes(config, up), down_rows * row_bytes(config, WeightForm.BF16)
    )
