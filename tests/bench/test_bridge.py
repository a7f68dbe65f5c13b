"""The bridge bench's arithmetic, and its bytes on a small shape over real links."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.bench.bench_bridge import (
    Crossing,
    bits_of,
    bridge_shape,
    crossings,
    figures,
    link_tokens_per_s,
)
from tests.support.namespaces import why_not
from trinity_serve.planning.traffic import layer_traffic
from trinity_serve.synthetic import PRESETS

WHY_NOT = why_not()
LARGE = PRESETS["large"]


@pytest.mark.parametrize(("text", "bits"), [("1gbit", 1e9), ("2.5gbit", 2.5e9), ("100mbit", 1e8)])
def test_rates_are_read_as_tc_writes_them(text: str, bits: float) -> None:
    assert bits_of(text) == bits


def test_a_rate_without_a_unit_is_refused() -> None:
    with pytest.raises(ValueError, match="1gbit"):
        bits_of("1000")


def test_the_shape_moves_what_large_moves_per_token_and_layer() -> None:
    assert layer_traffic(bridge_shape(2), 4) == layer_traffic(LARGE, 4)
    assert bridge_shape(2).num_moe_layers == 2


def test_one_gigabit_carries_94_tokens_per_second_of_large() -> None:
    """Down binds: 24,576 bytes × 54 layers are 1.33 MB of 125 MB per second."""
    assert link_tokens_per_s(layer_traffic(LARGE, 4), 1e9, 54) == pytest.approx(94.2, abs=0.05)


def test_the_figures_are_per_token_and_layer() -> None:
    # Ten steps of two layers; 0.5 s for each exchange of 4 rows.
    crossing = Crossing(
        4, 4 * 10 * 2, sent_bytes=80 * 20_000, received_bytes=80 * 24_576, seconds=0.5
    )
    found = {each.bench: each.value for each in figures(crossing, bridge_shape(2), 4, "1gbit")}
    assert found["bridge_up_measured"] == 20_000
    assert found["bridge_down_ratio"] == 1.0
    assert found["bridge_up_ratio"] == pytest.approx(20_000 / (2.744 * 6144), rel=1e-3)
    assert found["bridge_rate"] == pytest.approx(4 / (0.5 * 54))


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
def test_the_wire_carries_what_was_computed_and_no_faster_than_it_may() -> None:
    config = replace(bridge_shape(2), num_experts=32)
    [crossing] = crossings(config, num_shards=2, rate="20mbit", rows=[64], steps=3)
    computed, measured = layer_traffic(config, 2), crossing.measured
    # Headers of frames, gRPC, TCP and IP; nothing is sent twice or to a shard without its rows.
    assert 1.0 < measured.down_bytes / computed.down_bytes < 1.03
    # Random rows hit a few per cent more or fewer shards than the mean.
    assert measured.up_bytes / computed.up_bytes == pytest.approx(1.02, abs=0.05)
    carried_s = 64 * measured.down_bytes * 8 / bits_of("20mbit")
    assert crossing.seconds > 0.9 * carried_s
