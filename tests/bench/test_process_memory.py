"""The arithmetic of the memory bench."""

from __future__ import annotations

from tests.bench.bench_processes import held_by
from tests.bench.process_memory import ProcessMemory, kv_bytes_touched, table
from tests.bench.serving_load import Plan
from trinity_serve.synthetic import PRESETS


def test_the_rest_is_what_is_neither_weights_nor_kv() -> None:
    assert ProcessMemory("AttentionRank", 300, 200, 40).rest_bytes == 60


def test_a_started_block_counts_whole() -> None:
    assert kv_bytes_touched(1000, 32, [1, 32, 33]) == 4000


def test_a_process_of_ours_over_the_limit_is_marked_and_ray_never() -> None:
    rows = [
        ProcessMemory("Ingress", 260_000_000),
        ProcessMemory("AttentionRank", 260_000_000, 20_000_000),
        ProcessMemory("ray", 900_000_000),
    ]
    head, *lines = table(rows)
    assert head.split() == ["process", "PSS", "weights", "KV", "rest", "MB"]
    assert [line.endswith("over the limit") for line in lines] == [True, False, False]
    assert lines[1].split() == ["AttentionRank", "260.0", "20.0", "0.0", "240.0"]


def test_shards_and_rank_together_hold_the_whole_model() -> None:
    config = PRESETS["small"]
    held = held_by(config, 4, Plan(prompt_tokens=64, output_tokens=32))
    shard, rank = held["ExpertShard"], held["AttentionRank"]
    assert shard[1] == 0
    experts = config.num_moe_layers * config.num_experts
    one = 3 * config.hidden_size * config.moe_intermediate_size * 2
    assert 4 * shard[0] == experts * one
    assert 0 < rank[0] < shard[0]
    per_position = 2 * config.num_key_value_heads * config.head_dim * 2
    assert rank[1] == 16 * 96 * config.num_hidden_layers * per_position
