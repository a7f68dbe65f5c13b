"""A store reads its own experts, one at a time, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cluster.types import ShardSlice
from experts.checkpoint import Checkpoint
from experts.kernels.reference import ReferenceKernels
from experts.store import ExpertStore


@pytest.mark.parametrize("num_shards", [1, 3, 8])
def test_every_expert_is_held_by_exactly_one_slice(tiny_checkpoint: Path, num_shards: int) -> None:
    checkpoint = Checkpoint.open(str(tiny_checkpoint))
    config = checkpoint.config
    held = []
    for index in range(num_shards):
        store = ExpertStore.empty(config, ReferenceKernels(), "float32")
        store.load_slice(checkpoint, ShardSlice(index, num_shards))
        held += [
            (layer, expert)
            for layer, table in enumerate(store.tables)
            for expert in range(config.num_experts)
            if table.holds(expert)
        ]
    expected = [(layer, e) for layer in range(config.num_moe_layers) for e in range(16)]
    assert sorted(held) == expected


def test_tensor_bytes_read_are_those_of_the_slice(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(str(tiny_checkpoint))
    config = checkpoint.config
    store = ExpertStore.empty(config, ReferenceKernels(), "float32")
    seen: list[tuple[int, int]] = []
    store.load_slice(checkpoint, ShardSlice(1, 3), lambda done, total: seen.append((done, total)))
    num_experts = len(ShardSlice(1, 3).experts(config.num_experts)) * config.num_moe_layers
    slice_bytes = num_experts * 3 * config.hidden_size * config.moe_intermediate_size * 4
    assert checkpoint.bytes_read == pytest.approx(slice_bytes, rel=0.02)
    assert store.nbytes == slice_bytes
    assert [total for _, total in seen] == [slice_bytes] * num_experts
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == slice_bytes


def test_weights_are_rounded_once_to_the_compute_dtype(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(str(tiny_checkpoint))
    store = ExpertStore.empty(checkpoint.config, ReferenceKernels(), "bfloat16")
    store.load(checkpoint, {2: [5]})
    held = store.tables[2].weights(5)  # type: ignore[attr-defined]
    read = checkpoint.expert(checkpoint.config.moe_layers[2], 5)
    for kept, original in zip(held, read, strict=True):
        assert torch.equal(kept, original.bfloat16())
