"""Sizes against the tables that were computed by hand for Trinity-Large, Mini and Nano."""

from __future__ import annotations

import dataclasses

import pytest

from cluster.model_config import AfmoeConfig
from trinity_serve.model.describe import describe
from trinity_serve.planning.sizes import ModelSizes, WeightForm
from trinity_serve.planning.traffic import activated_share
from trinity_serve.synthetic import PRESETS

LARGE = PRESETS["large"]
GIB = 2**30


@pytest.mark.parametrize("name", ["large", "mini", "nano", "tiny"])
def test_bf16_bytes_are_those_of_the_checkpoints_tensors(name: str) -> None:
    config, sizes = PRESETS[name], ModelSizes(PRESETS[name])
    described = describe(config, shard_counts=[7])
    assert sizes.total_bytes == described.num_bytes
    assert sizes.rank_bytes == described.rank_bytes
    assert sizes.slice_bytes(7) == described.shards[0].num_bytes


def test_large_is_797_gb_of_which_routed_experts_are_783() -> None:
    sizes = ModelSizes(LARGE)
    assert sizes.total_bytes == 797_270_599_680
    assert sizes.routed_bytes == 2 * 391_378_894_848


# (experts, rest) -> GB of the whole model; the table has four digits. Scales of per-channel FP8
# are a little larger than those of blocks, which this counts.
@pytest.mark.parametrize(
    ("experts", "rest", "gigabytes", "tolerance"),
    [
        ("fp8", "fp8", 400.0, 0.0005),
        ("int4", "int4", 207.4, 0.0005),
        ("nvfp4", "bf16", 234.7, 0.0005),
    ],
)
def test_quantised_forms_of_large_weigh_what_was_computed(
    experts: str, rest: str, gigabytes: float, tolerance: float
) -> None:
    sizes = ModelSizes(LARGE, WeightForm(experts), WeightForm(rest))
    assert sizes.total_bytes / 1e9 == pytest.approx(gigabytes, rel=tolerance)


# Contexts in K, GiB without a window, GiB with one: the table's own digits.
@pytest.mark.parametrize(
    ("context_k", "full", "windowed"),
    [
        (8, 1.875, 1.172),
        (32, 7.5, 2.578),
        (64, 15, 4.453),
        (128, 30, 8.203),
        (256, 60, 15.703),
        (512, 120, 30.703),
    ],
)
def test_kv_of_large_with_and_without_the_sliding_window(
    context_k: int, full: float, windowed: float
) -> None:
    tokens = context_k * 1024
    assert ModelSizes(LARGE).kv_bytes(tokens) / GIB == pytest.approx(windowed, abs=0.0006)
    unwindowed = ModelSizes(without_window(LARGE))
    assert unwindowed.kv_bytes(tokens) / GIB == pytest.approx(full, abs=0.0006)
    assert ModelSizes(LARGE, kv_element_bytes=1).kv_bytes(tokens) / GIB == pytest.approx(
        windowed / 2, abs=0.0003
    )


# Decimal GB, one or two digits: half of the last digit.
@pytest.mark.parametrize(
    ("context_k", "gigabytes", "tolerance"),
    [(4, 1.0, 0.05), (8, 1.26, 0.005), (32, 2.8, 0.05), (128, 8.8, 0.05), (256, 16.9, 0.05)],
)
def test_kv_of_large_in_decimal_gigabytes(
    context_k: int, gigabytes: float, tolerance: float
) -> None:
    kv_bytes = ModelSizes(LARGE).kv_bytes(context_k * 1024)
    assert kv_bytes / 1e9 == pytest.approx(gigabytes, abs=tolerance)


def without_window(config: AfmoeConfig) -> AfmoeConfig:
    return dataclasses.replace(config, sliding_window=2**30)


# Batch -> experts per layer, weight GB in bf16 and FP8. The table leaves the router out (0.1 GB)
# and rounds to its digits; it has FP8 on every matrix but router and head, as here.
@pytest.mark.parametrize(
    ("batch", "experts", "bf16", "fp8"),
    [
        (1, 4.0, 25.4, 13.3),
        (4, 15.6, 61, 31),
        (8, 30.3, 106, 53.5),
        (16, 57, 188, 94),
        (32, 101, 323, 162),
        (64, 163, 510, 256),
        (128, 222, 692, 347),
        (256, 251.5, 782, 392),
        (512, 255.9, 796, 398),
    ],
)
def test_a_step_reads_what_was_computed_for_each_batch(
    batch: int, experts: float, bf16: float, fp8: float
) -> None:
    share = activated_share(LARGE, batch)
    assert 256 * share == pytest.approx(experts, rel=0.006)
    for form, gigabytes in ((WeightForm.BF16, bf16), (WeightForm.FP8, fp8)):
        sizes = ModelSizes(LARGE, form, form)
        read = sizes.rank_read_bytes + share * sizes.routed_bytes
        assert read / 1e9 == pytest.approx(gigabytes, rel=0.01)


# GFLOP per decoded token, the table's own digits.
@pytest.mark.parametrize(
    ("context_k", "gflop"),
    [(4, 31.55), (8, 33.06), (32, 42.12), (128, 78.36), (256, 126.7), (512, 223.3)],
)
def test_operations_per_decoded_token(context_k: int, gflop: float) -> None:
    sizes = ModelSizes(LARGE)
    flops = sizes.rank_flops + sizes.expert_flops + sizes.attention_flops(context_k * 1024)
    assert flops / 1e9 == pytest.approx(gflop, rel=0.0005)


# Devices, GB of weights -> GB left at 92 % of memory, and sequences of 128K in them.
@pytest.mark.parametrize(
    ("num_gpus", "memory_gb", "form", "rest", "room_gb", "sequences"),
    [
        (8, 80, "fp8", "fp8", 189, 21),
        (8, 141, "bf16", "bf16", 240, 27),
        (8, 141, "fp8", "fp8", 638, 72),
        (4, 141, "fp8", "fp8", 119, 13),
    ],
)
def test_weights_and_kv_on_whole_machines(
    num_gpus: int, memory_gb: int, form: str, rest: str, room_gb: int, sequences: int
) -> None:
    sizes = ModelSizes(LARGE, WeightForm(form), WeightForm(rest))
    room = 0.92 * num_gpus * memory_gb * 1e9 - sizes.total_bytes
    assert room / 1e9 == pytest.approx(room_gb, abs=0.6)
    assert int(room / sizes.kv_bytes(128 * 1024)) == sequences


def test_bf16_does_not_fit_eight_gpus_of_80_gb() -> None:
    assert ModelSizes(LARGE).total_bytes > 0.92 * 8 * 80e9
