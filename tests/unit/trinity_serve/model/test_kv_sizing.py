"""KV memory is split so that one long sequence fits and nothing is wasted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.errors import ConfigError
from cluster.model_config import AfmoeConfig
from trinity_serve.model.kv_sizing import KvDemand, KvSizes, block_bytes, size_kv
from trinity_serve.synthetic import PRESETS


def spent_bytes(config: AfmoeConfig, sizes: KvSizes) -> int:
    num_global = sum(config.is_global(i) for i in range(config.num_hidden_layers))
    num_sliding = config.num_hidden_layers - num_global
    return sizes.num_global_blocks * block_bytes(
        config, num_global, 2
    ) + sizes.num_sliding_blocks * block_bytes(config, num_sliding, 2)


@pytest.fixture
def config() -> AfmoeConfig:
    return replace(PRESETS["tiny"], sliding_window=128, max_position_embeddings=4096)


@pytest.mark.parametrize("memory_mib", [8, 16, 64, 256])
def test_sizes_stay_within_the_memory_and_hold_one_full_sequence(
    config: AfmoeConfig, memory_mib: int
) -> None:
    demand = KvDemand(max_num_seqs=64, max_model_len=4096, max_step_rows=512)
    sizes = size_kv(config, demand, memory_mib * 2**20, 2)
    assert spent_bytes(config, sizes) <= memory_mib * 2**20
    assert sizes.num_global_blocks >= 4096 // 32
    assert sizes.num_sliding_blocks >= (128 + 512) // 32 + 1


def test_pools_are_no_larger_than_their_sequences_can_fill(config: AfmoeConfig) -> None:
    demand = KvDemand(max_num_seqs=2, max_model_len=256, max_step_rows=64)
    sizes = size_kv(config, demand, 2**32, 2)
    assert sizes.num_global_blocks == 2 * 256 // 32
    assert sizes.num_sliding_blocks == 2 * ((128 + 64) // 32 + 1)


def test_too_little_memory_is_refused_with_what_is_needed(config: AfmoeConfig) -> None:
    demand = KvDemand(max_num_seqs=2, max_model_len=4096, max_step_rows=64)
    with pytest.raises(ConfigError, match=r"at least \d+ bytes, or a smaller model.max_model_len"):
        size_kv(config, demand, 1000, 2)
