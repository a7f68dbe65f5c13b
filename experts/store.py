"""The experts one process holds: which ones, and their packed weights."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from cluster.model_config import AfmoeConfig
from cluster.torch_dtypes import TORCH_DTYPES
from cluster.types import ComputeDtype, ShardSlice
from experts.checkpoint import Checkpoint
from experts.kernels.base import ExpertKernels, ExpertTable

Progress = Callable[[int, int], None]
"""(bytes done, bytes in all) of tensor data."""
ExpertWeights = tuple[Tensor, Tensor, Tensor]
"""gate_FD, up_FD, down_DF."""

_READ_AHEAD = 2
"""Experts read while one is packed: the disk does not wait, and memory stays at what is packed."""


@dataclass
class ExpertStore:
    """One table per MoE layer (counted from 0), filled with the experts of this shard."""

    config: AfmoeConfig
    dtype: ComputeDtype
    kernels: ExpertKernels
    tables: tuple[ExpertTable, ...]

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
        """Read and pack experts one at a time: peak memory is what is packed, and three experts.

        Args:
            checkpoint: where to read; errors of it go through.
            experts_of: expert ids by MoE layer.
            progress: called after each expert.
        """
        wanted = [(layer, e) for layer, experts in experts_of.items() for e in experts]
        size = 3 * self.config.hidden_size * self.config.moe_intermediate_size
        expert_bytes = size * TORCH_DTYPES[checkpoint.config.dtype].itemsize
        dtype = TORCH_DTYPES[self.dtype]
        places = [(self.config.moe_layers[layer], expert) for layer, expert in wanted]
        for done, weights in enumerate(_read_ahead(checkpoint, places)):
            layer, expert = wanted[done]
            self.tables[layer].put(expert, *(weight.to(dtype) for weight in weights))
            if progress is not None:
                progress((done + 1) * expert_bytes, len(wanted) * expert_bytes)


def _read_ahead(
    checkpoint: Checkpoint, places: Sequence[tuple[int, int]]
) -> Iterator[ExpertWeights]:
    """Yield the experts at `places` (absolute layer, expert), read on a thread of their own."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-experts") as reader:
        coming: deque[Future[ExpertWeights]] = deque()
        try:
            for layer, expert in places:
                coming.append(reader.submit(checkpoint.expert, layer, expert))
                if len(coming) > _READ_AHEAD:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()
