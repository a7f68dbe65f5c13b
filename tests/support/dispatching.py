"""A layer's rows over two fake shards, and what must come back."""

from __future__ import annotations

import numpy as np
import torch

from tests.fakes.shard_world import FakeRank, FakeShard, placement_of, wanted_rows

NUM_EXPERTS = 8
ALTERNATING = [[expert % 2] for expert in range(NUM_EXPERTS)]
REPLICATED = [[expert % 2, 1 - expert % 2] for expert in range(NUM_EXPERTS)]
TOPK_IDS = np.array([[0, 1, 5], [2, 7, 4], [6, 0, 3], [1, 2, 3]])
HIDDEN = torch.randn(4, 6, generator=torch.Generator().manual_seed(2)).bfloat16()


def two_shards(rank: FakeRank, copies: list[list[int]]) -> tuple[FakeShard, FakeShard]:
    """Start two shards, publish them and begin a step."""
    shards = rank.world.add(0), rank.world.add(1)
    rank.dispatcher.publish(placement_of(list(shards), copies))
    rank.dispatcher.begin_step()
    return shards


def assert_rows_are_right(rank: FakeRank, layer: int = 0) -> None:
    rows_TKD = rank.layer(HIDDEN, TOPK_IDS, layer)
    assert torch.equal(rows_TKD, wanted_rows(HIDDEN, TOPK_IDS, layer))


def nothing_is_open(rank: FakeRank) -> bool:
    return rank.dispatcher.num_open == 0
