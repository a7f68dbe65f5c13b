"""What shards would read of a checkpoint and hold, checked without reading a weight.

For checkpoints too large to be at hand: headers are enough.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from cluster.errors import CheckpointError, ConfigError
from cluster.placement import Placement, ShardInfo
from cluster.torch_dtypes import TORCH_DTYPES
from cluster.types import ComputeDtype, PlacementVersion, ShardId
from experts.checkpoint import Checkpoint
from experts.tensor_names import Shape, expert_names, is_routed_expert, tensor_shapes
from experts.tensor_reader import FileRange


@dataclass(frozen=True, slots=True)
class ShardLoad:
    """What one shard reads and then holds."""

    index: int
    num_experts: int
    """Over all layers."""
    num_files: int
    num_ranges: int
    """Contiguous pieces of files, neighbours taken together."""
    read_bytes: int
    held_bytes: int
    """Packed, in the compute dtype."""


def plan_loads(
    checkpoint: Checkpoint,
    num_shards: int,
    memory_bytes: int | None = None,
    dtype: ComputeDtype | None = None,
) -> tuple[ShardLoad, ...]:
    """Return what each of `num_shards` shards loads. Reads headers, no tensor.

    Args:
        checkpoint: its weight files need their headers and lengths only.
        num_shards: each holds one slice of every MoE layer.
        memory_bytes: what one shard may hold; None asks for nothing.
        dtype: compute dtype, by default the checkpoint's.

    Raises:
        CheckpointError: a header contradicts the configuration, a range leaves its file, or two
            tensors share bytes.
        ConfigError: a shard would be without experts, or hold more than `memory_bytes`.
    """
    model = checkpoint.config
    if num_shards > model.num_experts:
        allowed = f"1 to {model.num_experts}, the model's number of experts"
        raise ConfigError("dry run", "num_shards", f"is {num_shards}", allowed)
    placement = Placement.sliced(
        PlacementVersion(1, 1),
        tuple(ShardInfo(ShardId(index), "", 0) for index in range(num_shards)),
        model.num_moe_layers,
        model.num_experts,
    )
    ranges_of = [_ranges_of(checkpoint, placement, index) for index in range(num_shards)]
    _check_ranges(checkpoint, [each for ranges in ranges_of for each in ranges])
    item_bytes = TORCH_DTYPES[dtype or model.dtype].itemsize
    expert_bytes = 3 * model.hidden_size * model.moe_intermediate_size * item_bytes
    loads = tuple(
        _load(placement, index, ranges, expert_bytes) for index, ranges in enumerate(ranges_of)
    )
    _check_memory(loads, memory_bytes)
    return loads


def _expert_shapes(checkpoint: Checkpoint) -> tuple[Shape, Shape, Shape]:
    hidden, width = checkpoint.config.hidden_size, checkpoint.config.moe_intermediate_size
    return (width, hidden), (width, hidden), (hidden, width)


def _ranges_of(checkpoint: Checkpoint, placement: Placement, index: int) -> list[FileRange]:
    shapes = _expert_shapes(checkpoint)
    return [
        found
        for moe_layer, layer in enumerate(checkpoint.config.moe_layers)
        for expert in placement.experts_of(index, moe_layer)
        for name, shape in zip(expert_names(layer, expert), shapes, strict=True)
        for found in checkpoint.ranges(name, shape)
    ]


def _check_ranges(checkpoint: Checkpoint, routed: Sequence[FileRange]) -> None:
    """Every byte that any process reads lies in its file and belongs to one tensor."""
    others = [
        found
        for name, shape in tensor_shapes(checkpoint.config)
        if not is_routed_expert(name)
        for found in checkpoint.ranges(name, shape)
    ]
    by_file = defaultdict(list)
    for each in (*routed, *others):
        by_file[each.file].append(each)
    for file, ranges in by_file.items():
        path = checkpoint.path / file
        _check_file(path, sorted(ranges, key=lambda each: each.offset))


def _check_file(path: Path, ranges: Iterable[FileRange]) -> None:
    size, end = path.stat().st_size, 0
    for each in ranges:
        if each.offset < end:
            found = f"bytes {each.offset} to {end} in two"
            raise CheckpointError(str(path), "", "bytes of one tensor each", found)
        end = each.offset + each.nbytes
        if end > size:
            raise CheckpointError(str(path), "", f"at least {end} bytes", f"{size}")


def _load(
    placement: Placement, index: int, ranges: Sequence[FileRange], expert_bytes: int
) -> ShardLoad:
    num_layers = placement.copies_LEC.shape[0]
    num_experts = sum(len(placement.experts_of(index, layer)) for layer in range(num_layers))
    ordered = sorted(ranges, key=lambda each: (each.file, each.offset))
    joined = sum(
        before.file == after.file and before.offset + before.nbytes == after.offset
        for before, after in pairwise(ordered)
    )
    return ShardLoad(
        index=index,
        num_experts=num_experts,
        num_files=len({each.file for each in ranges}),
        num_ranges=len(ordered) - joined,
        read_bytes=sum(each.nbytes for each in ranges),
        held_bytes=num_experts * expert_bytes,
    )


def _check_memory(loads: Sequence[ShardLoad], memory_bytes: int | None) -> None:
    largest = max(loads, key=lambda load: load.held_bytes)
    if memory_bytes is not None and largest.held_bytes > memory_bytes:
        problem = f"is {len(loads)}: shard {largest.index} would hold {largest.held_bytes} bytes"
        raise ConfigError("dry run", "num_shards", problem, f"at most {memory_bytes} bytes each")
