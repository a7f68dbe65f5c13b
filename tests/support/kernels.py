"""Backends, instruction sets and inputs of the kernel suites."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

from experts.kernels.base import ExpertKernels, ExpertTable, Int32
from experts.kernels.cpu.library import ExpertLibrary, Isa
from trinity_serve.model.batch import KV_BLOCK_SIZE, ForwardBatch, Int64, KvView
from trinity_serve.model.kernels.base import AttentionShape, KvCache, ModelKernels
from trinity_serve.model.rope import rope_table

Experts = tuple[Tensor, Tensor, Tensor]

TOLERANCES = {torch.bfloat16: 2**-7, torch.float32: 1e-5}
"""Two backends may round a bfloat16 apart by one unit in the last place (two across a power of
two), where their fp32 sums differ; sums of float32 differ by their order alone."""
DTYPES = [torch.bfloat16, torch.float32]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers that do not depend on what ran before."""
    generator = torch.Generator().manual_seed(seed + 7919 * sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


@contextmanager
def process_state(library: ExpertLibrary, isa: Isa, threads: int) -> Iterator[None]:
    """Run with this instruction set and thread count; they belong to the process."""
    if isa > library.best_isa:
        pytest.skip(f"this machine has no {isa.name}; its best is {library.best_isa.name}")
    before = library.isa, library.num_threads
    library.set_isa(isa)
    library.set_threads(threads)
    try:
        yield
    finally:
        library.set_isa(before[0])
        library.set_threads(before[1])


def assert_near(got: Tensor, want: Tensor, times: int = 1) -> None:
    """Same shape and dtype, and within `times` the dtype's tolerance, relative and absolute."""
    tolerance = times * TOLERANCES[want.dtype]
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def bits(x: Tensor) -> Tensor:
    """What must be equal: the bits, with one pattern for every NaN."""
    as_int = x.view(torch.int16 if x.dtype == torch.bfloat16 else torch.int32)
    return torch.where(torch.isnan(x), torch.full_like(as_int, -1), as_int)


def random_experts(num: int, hidden: int, width: int, dtype: torch.dtype) -> list[Experts]:
    """Gate [F, D], up [F, D] and down [D, F] of each expert, scaled to keep activations near 1."""
    return [
        (
            random(width, hidden, seed=3 * e + 1).mul(hidden**-0.5).to(dtype),
            random(width, hidden, seed=3 * e + 2).mul(hidden**-0.5).to(dtype),
            random(hidden, width, seed=3 * e + 3).mul(width**-0.5).to(dtype),
        )
        for e in range(num)
    ]


def filled_table(kernels: ExpertKernels, experts: list[Experts]) -> ExpertTable:
    """A table of this backend that holds all of them."""
    width, hidden = experts[0][0].shape
    table = kernels.new_table(len(experts), hidden, width, experts[0][0].dtype)
    for expert, weights in enumerate(experts):
        table.put(expert, *weights)
    return table


def groups(sizes: list[int], expert_ids: list[int], num_tokens: int) -> tuple[Int32, Int32, Int32]:
    """Token indices, expert ids and offsets of ragged groups over `num_tokens` tokens."""
    total = sum(sizes)
    token_idx = (np.arange(total) * 7 % max(1, num_tokens)).astype(np.int32)
    offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int32)
    return token_idx, np.array(expert_ids, np.int32), offsets


class Sequences:
    """Sequences over a paged cache of one backend, fed in whatever pieces a test likes."""

    LAYER = 1

    def __init__(
        self,
        kernels: ModelKernels,
        shape: AttentionShape,
        dtype: torch.dtype,
        lengths: list[int],
        window: int | None = None,
    ) -> None:
        self.kernels, self.shape, self.window = kernels, shape, window
        blocks = [-(-length // KV_BLOCK_SIZE) for length in lengths]
        num_blocks = sum(blocks) + 2
        self.cache: KvCache = kernels.new_kv_cache(2, num_blocks, shape, dtype)
        shuffled = np.random.RandomState(5).permutation(num_blocks).astype(np.int32)
        self.tables_BM = np.full((len(lengths), max(blocks)), -1, np.int32)
        for seq, count in enumerate(blocks):
            first = sum(blocks[:seq])
            self.tables_BM[seq, :count] = shuffled[first : first + count]
        device = kernels.device
        rope = rope_table(max(lengths), shape.head_dim, 10_000.0).to(device)
        self.rope = rope if window else None
        width = shape.qkvg_width
        self.inputs = [
            random(length, width, dtype=dtype, seed=seq).to(device)
            for seq, length in enumerate(lengths)
        ]
        self.q_norm = (random(shape.head_dim, seed=1).abs() + 0.5).to(device, dtype)
        self.k_norm = (random(shape.head_dim, seed=2).abs() + 0.5).to(device, dtype)

    def step(self, pieces: dict[int, tuple[int, int]]) -> dict[int, Tensor]:
        """Compute rows [begin, end) of each sequence named; return their outputs."""
        batch, view, qkvg_TX = self._batch(pieces)
        q_TX = self._write(batch, view, qkvg_TX)
        out_TX = self.kernels.paged_attention(
            q_TX, qkvg_TX, self.shape, batch, view, self.cache, self.LAYER, self.window
        )
        starts = batch.query_start_B1
        return {seq: out_TX[starts[i] : starts[i + 1]] for i, seq in enumerate(pieces)}

    def write(self, pieces: dict[int, tuple[int, int]]) -> None:
        """Write K and V of these rows, without attention."""
        self._write(*self._batch(pieces))

    def _batch(self, pieces: dict[int, tuple[int, int]]) -> tuple[ForwardBatch, KvView, Tensor]:
        seqs = list(pieces)
        position_parts = [np.arange(*pieces[seq], dtype=np.int64) for seq in seqs]
        positions_T: Int64 = np.concatenate(position_parts)
        slots_T = np.concatenate(
            [
                self.tables_BM[seq, part // KV_BLOCK_SIZE].astype(np.int64) * KV_BLOCK_SIZE
                + part % KV_BLOCK_SIZE
                for seq, part in zip(seqs, position_parts, strict=True)
            ]
        )
        view = KvView(np.ascontiguousarray(self.tables_BM[seqs]), slots_T)
        starts = np.cumsum([0] + [len(part) for part in position_parts]).astype(np.int32)
        none = np.zeros(0, np.int64)
        batch = ForwardBatch(positions_T, positions_T, starts, view, view, none)
        return batch, view, torch.cat([self.inputs[seq][slice(*pieces[seq])] for seq in seqs])

    def _write(self, batch: ForwardBatch, view: KvView, qkvg_TX: Tensor) -> Tensor:
        return self.kernels.write_kv(
            qkvg_TX,
            self.q_norm,
            self.k_norm,
            self.shape,
            batch.positions_T,
            self.rope,
            view,
            self.cache,
            self.LAYER,
        )

    def run(self, piece: int) -> list[Tensor]:
        """Feed every sequence from its start in pieces of this many rows, side by side."""
        lengths = [len(rows) for rows in self.inputs]
        outputs: list[list[Tensor]] = [[] for _ in lengths]
        for begin in range(0, max(lengths), piece):
            pieces = {
                seq: (begin, min(begin + piece, length))
                for seq, length in enumerate(lengths)
                if begin < length
            }
            for seq, rows in self.step(pieces).items():
                outputs[seq].append(rows)
        return [torch.cat(parts) for parts in outputs]
