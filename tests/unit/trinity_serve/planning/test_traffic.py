"""What routing does to reads and wires, against tables computed by hand for Trinity-Large."""

from __future__ import annotations

import pytest

from trinity_serve.planning.sizes import ModelSizes, WeightForm
from trinity_serve.planning.traffic import (
    activated_share,
    amplification,
    layer_traffic,
    row_bytes,
    shards_per_token,
)
from trinity_serve.synthetic import PRESETS

LARGE = PRESETS["large"]


# The table has whole per cents and two digits of amplification.
@pytest.mark.parametrize(
    ("tokens", "percent", "at_8", "at_16"),
    [
        (8, 12, 1.5, 2.2),
        (16, 22, 2.1, 3.6),
        (32, 40, 3.2, 6.3),
        (64, 63, 5.1, 10),
        (128, 87, 6.9, 14),
    ],
)
def test_reads_without_alignment(tokens: int, percent: int, at_8: float, at_16: float) -> None:
    assert 100 * activated_share(LARGE, tokens) == pytest.approx(percent, abs=0.51)
    assert amplification(LARGE, 8, tokens) == pytest.approx(at_8, abs=0.05)
    assert amplification(LARGE, 16, tokens) == pytest.approx(at_16, rel=0.017)


# The table draws a token's experts with replacement, this without: up to 0.6 % more shards.
@pytest.mark.parametrize(("shards", "distinct"), [(4, 2.73), (8, 3.31), (16, 3.64), (32, 3.82)])
def test_distinct_shards_of_a_token(shards: int, distinct: float) -> None:
    assert shards_per_token(LARGE, shards) == pytest.approx(distinct, rel=0.006)


def test_a_token_goes_to_one_shard_of_one_and_to_k_of_as_many_shards_as_experts() -> None:
    assert shards_per_token(LARGE, 1) == 1
    assert shards_per_token(LARGE, LARGE.num_experts) == pytest.approx(4)


# KB per token and layer; half of the last digit, and 0.6 % for drawing without replacement.
@pytest.mark.parametrize(
    ("shards", "up", "reduced", "unreduced", "ratio"),
    [
        (4, 8.7, 16.8, 24.6, 1.46),
        (8, 10.5, 20.3, 24.6, 1.21),
        (16, 11.6, 22.4, 24.6, 1.10),
        (32, 12.2, 23.4, 24.6, 1.05),
    ],
)
def test_bytes_per_token_and_layer(
    shards: int, up: float, reduced: float, unreduced: float, ratio: float
) -> None:
    exact = layer_traffic(LARGE, shards, up=WeightForm.FP8)
    summed = layer_traffic(LARGE, shards, up=WeightForm.FP8, reduced=True)
    assert exact.up_bytes / 1e3 == pytest.approx(up, rel=0.008)
    assert exact.down_bytes / 1e3 == pytest.approx(unreduced, abs=0.05)
    assert summed.down_bytes / 1e3 == pytest.approx(reduced, rel=0.008)
    assert exact.down_bytes / summed.down_bytes == pytest.approx(ratio, abs=0.011)


def test_a_step_of_1000_tokens_moves_35_megabytes_per_layer_and_1_9_gigabytes_in_all() -> None:
    per_layer = 1000 * layer_traffic(LARGE, 8, up=WeightForm.FP8).total_bytes
    assert per_layer / 1e6 == pytest.approx(35, abs=0.5)
    assert 54 * per_layer / 1e9 == pytest.approx(1.9, abs=0.05)


def test_rows_of_large_take_6144_bytes_and_3168_as_fp8_with_scales() -> None:
    assert row_bytes(LARGE, WeightForm.BF16) == 6144
    assert row_bytes(LARGE, WeightForm.FP8) == 3168
    assert 4 * row_bytes(LARGE, WeightForm.FP8) == 12_672


# Milliseconds at 4.8 TB/s with every expert read: the table's digits.
@pytest.mark.parametrize(("shards", "fp8_ms"), [(4, 20.4), (8, 10.2), (16, 5.1), (32, 2.5)])
def test_the_floor_of_reading_every_expert(shards: int, fp8_ms: float) -> None:
    read_ms = ModelSizes(LARGE, WeightForm.FP8).slice_bytes(shards) / 4.8e12 * 1e3
    assert read_ms == pytest.approx(fp8_ms, abs=0.06)
