"""What a shard reads of a checkpoint: its own experts, and next to nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.types import ShardSlice
from experts.checkpoint import Checkpoint
from experts.config import fingerprint_of
from experts.kernels.reference import ReferenceKernels
from experts.store import ExpertStore
from trinity_serve.synthetic import write_checkpoint


@pytest.fixture(scope="module")
def demo_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 experts in tens of megabytes."""
    return write_checkpoint("demo", tmp_path_factory.mktemp("demo") / "checkpoint")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_each_shard_reads_its_slice_and_the_shards_together_every_expert_once(
    demo_checkpoint: Path, count: int
) -> None:
    total_bytes = 0
    for index in range(count):
        checkpoint = Checkpoint.open(str(demo_checkpoint))
        config, kernels = checkpoint.config, ReferenceKernels()
        fingerprint_of(checkpoint, kernels, config.dtype)
        store = ExpertStore.empty(config, kernels, config.dtype)
        store.load_slice(checkpoint, ShardSlice(index, count))
        num_experts = len(ShardSlice(index, count).experts(config.num_experts))
        expert_bytes = 3 * config.hidden_size * config.moe_intermediate_size * 2
        slice_bytes = config.num_moe_layers * num_experts * expert_bytes
        assert slice_bytes <= checkpoint.bytes_read <= 1.02 * slice_bytes
        total_bytes += store.nbytes
    assert total_bytes == config.num_moe_layers * config.num_experts * expert_bytes
