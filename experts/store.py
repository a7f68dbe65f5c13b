"""The experts one process holds: which ones, and their packed weights."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from cluster.checksum import checksum
from cluster.model_config import AfmoeConfig
from cluster.pool_messages import HoldsLE, SumsLE
from cluster.torch_dtypes import TORCH_DTYPES
from cluster.types import ComputeDtype, ShardSlice
from experts.checkpoint import Checkpoint, ExpertTensors
from experts.kernels.base import ExpertKernels, ExpertTable
from experts.staging import Staging

Progress = Callable[[int, int], None]
"""(bytes done, bytes in all) of tensor data."""

_READ_AHEAD = 2
"""Experts read while one is packed: the disk does not wait, and memory stays at what is packed."""

_READ_THREADS = 4
"""Pieces of one expert that are read side by side: an NVMe disk wants several requests."""


@dataclass
class ExpertStore:
    """One table per MoE layer (counted from 0), filled with the experts of this shard."""

    config: AfmoeConfig
    dtype: ComputeDtype
    kernels: ExpertKernels
    tables: tuple[ExpertTable, ...]
    sums_LE: SumsLE = field(init=False)
    """Checksum of the checkpoint's bytes of each expert that is held, else 0."""

    def __post_init__(self) -> None:
        self.sums_LE = np.zeros((len(self.tables), self.config.num_experts), np.uint32)

    @classmethod
    def empty(cls, config: AfmoeConfig, kernels: ExpertKernels, dtype: ComputeDtype) -> ExpertStore:
        """Return a store that holds no expert yet."""
        tables = tuple(
            kernels.new_table(
                config.num_experts,
                config.hidden_size,
                config.moe_intermediate_size,
                TORCH_DTYPES[dtype],
            )
            for _ in config.moe_layers
        )
        return cls(config, dtype, kernels, tables)

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights."""
        return sum(table.nbytes for table in self.tables)

    def load_slice(
        self, checkpoint: Checkpoint, part: ShardSlice, progress: Progress | None = None
    ) -> None:
        """Read the experts of one slice of every MoE layer; see `load`."""
        experts = part.experts(self.config.num_experts)
        self.load(checkpoint, dict.fromkeys(range(self.config.num_moe_layers), experts), progress)

    def load(
        self,
        checkpoint: Checkpoint,
        experts_of: Mapping[int, Iterable[int]],
        progress: Progress | None = None,
    ) -> None:
        """Read and pack experts one at a time: peak memory is what is packed, and four experts.

        Args:
            checkpoint: where to read; errors of it go through.
            experts_of: expert ids by MoE layer.
            progress: called after each expert.
        """
        wanted = [(layer, e) for layer, experts in experts_of.items() for e in experts]
        size = 3 * self.config.hidden_size * self.config.moe_intermediate_size
        expert_bytes = size * TORCH_DTYPES[checkpoint.config.dtype].itemsize
        places = [(self.config.moe_layers[layer], expert) for layer, expert in wanted]
        staging = self._staging(checkpoint)
        for done, (weights, total) in enumerate(_read_ahead(checkpoint, places, staging)):
            layer, expert = wanted[done]
            self.put(layer, expert, weights, total)
            if progress is not None:
                progress((done + 1) * expert_bytes, len(wanted) * expert_bytes)

    def load_held(
        self, checkpoint: Checkpoint, holds_LE: HoldsLE, progress: Progress | None = None
    ) -> None:
        """Read the experts that `holds_LE` marks; see `load`."""
        wanted = {layer: np.flatnonzero(row_E).tolist() for layer, row_E in enumerate(holds_LE)}
        self.load(checkpoint, wanted, progress)

    def put(self, layer: int, expert: int, weights: ExpertTensors, total: int) -> None:
        """Pack and keep one expert of a MoE layer, in the dtype of the checkpoint or ours.

        `total` is `checksum_of(weights)`, which whoever read them works out beside the packing.
        """
        dtype = TORCH_DTYPES[self.dtype]
        gate_FD, up_FD, down_DF = weights
        self.tables[layer].put(expert, gate_FD.to(dtype), up_FD.to(dtype), down_DF.to(dtype))
        self.sums_LE[layer, expert] = total

    def _staging(self, checkpoint: Checkpoint) -> Staging:
        hidden, width = self.config.hidden_size, self.config.moe_intermediate_size
        shapes = ((width, hidden), (width, hidden), (hidden, width))
        return Staging(shapes, TORCH_DTYPES[checkpoint.config.dtype], self.kernels.device)

    def drop(self, layer: int, expert: int) -> None:
        """Free one expert."""
        self.tables[layer].drop(expert)
        self.sums_LE[layer, expert] = 0


def checksum_of(weights: ExpertTensors) -> int:
    """Return a number that differs when one byte of an expert does; never 0."""
    parts = [weight.contiguous().view(-1).view(torch.uint8).numpy().data for weight in weights]
    return checksum(*parts) or 1


def _read_ahead(
    checkpoint: Checkpoint, places: Sequence[tuple[int, int]], staging: Staging
) -> Iterator[tuple[ExpertTensors, int]]:
    """Yield the experts at `places` (absolute layer, expert) and their checksums.

    Read on a thread of their own. What is yielded is overwritten after the next one is asked for.
    """

    def read(layer: int, expert: int) -> tuple[ExpertTensors, int]:
        gate_FD, up_FD, down_DF = staging.take()
        weights = checkpoint.expert(layer, expert, (gate_FD, up_FD, down_DF))
        return weights, checksum_of(weights)

    with (
        checkpoint.reading_side_by_side(_READ_THREADS),
        ThreadPoolExecutor(1, thread_name_prefix="read-experts") as reader,
    ):
        coming: deque[Future[tuple[ExpertTensors, int]]] = deque()
        try:
            for place in places:
                coming.append(reader.submit(read, *place))
                if len(coming) > _READ_AHEAD:
                    weights, total = coming.popleft().result()
                    yield weights, total
                    staging.give_back(weights)
            while coming:
                yield coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()
