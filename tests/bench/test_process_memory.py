"""The arithmetic of the memory bench."""

from __future__ import annotations

from tests.bench.bench_processes import weights_of
from tests.bench.process_memory import ProcessMemory, pool_pss_bytes, table
from trinity_serve.synthetic import PRESETS


def test_the_rest_is_what_is_neither_weights_nor_kv() -> None:
    assert ProcessMemory("AttentionRank", 300, 200, 40).rest_bytes == 60


SMAPS = """\
7f0000000000-7f0010000000 rw-p 00000000 00:00 0
Rss:               16400 kB
Pss:               16384 kB
VmFlags: rd wr mr mw me ac sd hg
7f0020000000-7f0030000000 rw-p 00000000 00:00 0
Pss:                5000 kB
VmFlags: rd wr mr mw me ac sd
7f0040000000-7f0040200000 rw-p 00000000 00:00 0
Pss:                2048 kB
VmFlags: rd wr mr mw me ac sd hg
"""


def test_kv_is_what_is_resident_of_large_mappings_that_ask_for_huge_pages() -> None:
    assert pool_pss_bytes(SMAPS) == 16384 * 1024


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
    weights = weights_of(config, 4)
    experts = config.num_moe_layers * config.num_experts
    one = 3 * config.hidden_size * config.moe_intermediate_size * 2
    assert 4 * weights["ExpertShard"] == experts * one
    assert 0 < weights["AttentionRank"] < weights["ExpertShard"]
