from __future__ import annotations

from pathlib import Path

import pytest

from experts.checkpoint import Checkpoint
from trinity_serve.model.describe import ModelDescription, describe
from trinity_serve.synthetic import PRESETS


@pytest.fixture(scope="module")
def large() -> ModelDescription:
    return describe(PRESETS["large"])


def test_large_counts_as_published(large: ModelDescription) -> None:
    parts = {part.name: part.num_parameters for part in large.components}
    assert parts == {
        "routed experts": 391_378_894_848,
        "shared experts": 1_528_823_808,
        "router": 42_467_328,
        "expert bias": 13_824,
        "norms": 755_712,
        "attention": 3_774_873_600,
        "dense layers": 679_477_248,
        "embedding": 614_989_824,
        "output head": 614_989_824,
    }
    assert large.num_parameters == 398_635_286_016
    assert large.num_bytes == 797_270_599_680
    assert large.active_parameters == 12_756_696_576


def test_large_keeps_as_much_kv_as_its_window_and_global_layers_need(
    large: ModelDescription,
) -> None:
    assert large.global_kv_bytes_per_token == 61_440
    assert large.sliding_kv_bytes_per_sequence == 720 * 2**20


def test_rank_and_shards_together_hold_the_model(large: ModelDescription) -> None:
    assert large.bytes_per_expert == 2 * 28_311_552
    for fit in large.shards:
        assert large.rank_bytes + fit.num_shards * fit.num_bytes == large.num_bytes


def test_an_uneven_split_is_sized_by_its_largest_slice() -> None:
    (fit,) = describe(PRESETS["large"], [3]).shards
    assert fit.experts_per_layer == 86
    assert fit.num_bytes == 86 * 54 * 2 * 28_311_552


def test_more_shards_than_experts_are_left_out() -> None:
    assert describe(PRESETS["large"], [256, 257]).shards[-1].num_shards == 256


def test_a_checkpoint_is_described_as_large_as_its_files_without_reading_them(
    tiny_checkpoint: Path,
) -> None:
    checkpoint = Checkpoint.open(str(tiny_checkpoint))
    files = sum(path.stat().st_size for path in tiny_checkpoint.glob("*.safetensors"))
    headers = sum(
        8 + int.from_bytes(path.read_bytes()[:8], "little")
        for path in tiny_checkpoint.glob("*.safetensors")
    )
    assert describe(checkpoint).num_bytes == files - headers
    assert checkpoint.bytes_read == 0
