"""Fused segments have the bits of the ops one after the other, on any batch of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np
import pytest
import torch
from torch import Tensor

from cluster.errors import KernelInputError
from cluster.model_config import AfmoeConfig
from cluster.torch_dtypes import TORCH_DTYPES
from cluster.types import ComputeDtype
from experts.kernels.cpu.kernels import CpuExpertKernels
from experts.kernels.cpu.library import Isa
from tests.support.kernels import process_state, random
from trinity_serve.model.batch import KV_BLOCK_SIZE, ForwardBatch, Int64, KvView
from trinity_serve.model.decoder import place_layers
from trinity_serve.model.fused.cpu import CpuSegments
from trinity_serve.model.kernels.cpu.kernels import CpuModelKernels
from trinity_serve.model.kv_sizing import KvSizes
from trinity_serve.model.segments import PlainSegments, Rows, Segments
from trinity_serve.model.weights import load_weights

KERNELS = (CpuExpertKernels(), CpuModelKernels())
LIBRARY = KERNELS[0].library
MAX_LEN = 192
BLOCKS_EACH = MAX_LEN // KV_BLOCK_SIZE
NUM_SEQS = 4
DTYPES: list[ComputeDtype] = ["bfloat16", "float32"]


@dataclass(frozen=True)
class RandomReader:
    """A checkpoint of small random numbers; each tensor is a function of its name."""

    config: AfmoeConfig

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        scale = 0.1 if name.endswith("expert_bias") or len(shape) == 1 else shape[-1] ** -0.5
        centre = 1.0 if "norm" in name else 0.0
        return random(*shape, seed=crc32(name.encode())) * scale + centre


@dataclass(frozen=True)
class Twins:
    """Both forms over the same weights, each with a cache of its own, and sequences that grow."""

    plain: Segments
    fused: Segments
    config: AfmoeConfig
    rng: np.random.Generator
    lengths: list[int]

    @classmethod
    def of(cls, config: AfmoeConfig, dtype: ComputeDtype, seed: int) -> Twins:
        weights = load_weights(RandomReader(config), KERNELS[0], dtype)
        sizes = KvSizes(NUM_SEQS * BLOCKS_EACH, NUM_SEQS * BLOCKS_EACH)
        plain, fused = (
            make(
                config,
                weights,
                KERNELS,
                place_layers(config, KERNELS[1], sizes, MAX_LEN, TORCH_DTYPES[dtype]),
            )
            for make in (PlainSegments, CpuSegments)
        )
        return cls(plain, fused, config, np.random.default_rng(seed), [0] * NUM_SEQS)

    def batch(self, counts: list[int]) -> ForwardBatch:
        """The next `counts` rows of each sequence; those without rows are left out."""
        seqs = [seq for seq, count in enumerate(counts) if count]
        tables = np.array(
            [np.arange(BLOCKS_EACH) * NUM_SEQS + seq for seq in seqs], np.int32
        ).reshape(len(seqs), BLOCKS_EACH)
        spans = [np.arange(self.lengths[s], self.lengths[s] + counts[s]) for s in seqs]
        slots = [
            tables[i][span // KV_BLOCK_SIZE].astype(np.int64) * KV_BLOCK_SIZE + span % KV_BLOCK_SIZE
            for i, span in enumerate(spans)
        ]
        for seq in seqs:
            self.lengths[seq] += counts[seq]
        view = KvView(tables, np.concatenate(slots))
        return ForwardBatch(
            token_ids_T=self.rng.integers(0, self.config.vocab_size, sum(counts)),
            positions_T=np.concatenate(spans).astype(np.int64),
            query_start_B1=np.cumsum([0, *(counts[s] for s in seqs)]).astype(np.int32),
            global_kv=view,
            sliding_kv=view,
            logits_rows_R=np.arange(sum(counts), dtype=np.int64),
        )

    def random_counts(self, most: int) -> list[int]:
        """1 to `most` rows in all, over some of the sequences, as far as they may grow."""
        total, counts = int(self.rng.integers(1, most + 1)), [0] * NUM_SEQS
        for seq in self.rng.permutation(NUM_SEQS).tolist():
            room = min(total - sum(counts), MAX_LEN - self.lengths[seq])
            counts[seq] = int(self.rng.integers(0, room + 1))
        if sum(counts) == 0:
            counts[int(np.argmin(self.lengths))] = 1
        return counts

    def expert_rows(self, num_rows: int, dtype: torch.dtype) -> tuple[Tensor, Int64]:
        """What the shards would send, in an order of their own."""
        top_k = self.config.num_experts_per_tok
        rows = torch.from_numpy(
            self.rng.standard_normal((num_rows * top_k, self.config.hidden_size))
        )
        slots = self.rng.permutation(num_rows * top_k).reshape(num_rows, top_k)
        return rows.to(dtype), slots.astype(np.int64)


def run(twins: Twins, batch: ForwardBatch, bad: float | None = None) -> None:
    """One forward pass of both, compared after every segment."""
    plain, fused = twins.plain.start(batch), twins.fused.start(batch)
    assert_same(plain, fused)
    for layer in range(twins.config.num_hidden_layers):
        twins.plain.attention(layer, plain)
        twins.fused.attention(layer, fused)
        assert_same(plain, fused)
        if layer in twins.config.moe_layers:
            run_moe(twins, layer, plain, fused, bad)
        else:
            twins.plain.dense(layer, plain)
            twins.fused.dense(layer, fused)
        assert_same(plain, fused)
    got, want = (s.logits(r, batch.logits_rows_R) for s, r in both(twins, plain, fused))
    assert torch.equal(got, want)


def run_moe(twins: Twins, layer: int, plain: Rows, fused: Rows, bad: float | None) -> None:
    num_rows, dtype = plain.batch.num_rows, plain.x_TD.dtype
    want, got = (s.route(layer, r) for s, r in both(twins, plain, fused))
    assert np.array_equal(want, got)
    for segments, rows in both(twins, plain, fused):
        segments.shared_expert(layer, rows)
    expert_rows_ND, slots_TK = twins.expert_rows(num_rows, dtype)
    if bad is not None:
        spoilt_ND = expert_rows_ND.clone()
        at = int(twins.rng.integers(0, spoilt_ND.numel()))
        spoilt_ND.view(-1)[at] = bad
        before = plain.x_TD.clone(), plain.normed_TD.clone()
        for segments, rows in both(twins, plain, fused):
            assert not segments.finish_moe(layer, rows, spoilt_ND, slots_TK)
            assert torch.equal(rows.x_TD, before[0])
            assert torch.equal(rows.normed_TD, before[1])
    for segments, rows in both(twins, plain, fused):
        assert segments.finish_moe(layer, rows, expert_rows_ND, slots_TK)


def both(twins: Twins, plain: Rows, fused: Rows) -> list[tuple[Segments, Rows]]:
    return [(twins.plain, plain), (twins.fused, fused)]


def assert_same(plain: Rows, fused: Rows) -> None:
    assert torch.equal(plain.x_TD, fused.x_TD)
    assert torch.equal(plain.normed_TD, fused.normed_TD)


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    with process_state(LIBRARY, LIBRARY.best_isa, request.param):
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(3))
def test_random_batches_have_the_same_bits_after_every_segment(
    threads: int, tiny_config: AfmoeConfig, dtype: ComputeDtype, seed: int
) -> None:
    twins = Twins.of(tiny_config, dtype, seed)
    for most in (100, 100, 20, 4, 1):
        if min(twins.lengths) < MAX_LEN:
            run(twins, twins.batch(twins.random_counts(most)))


@pytest.mark.parametrize("num_rows", [1, 2, 13, 64, 100])
def test_every_number_of_rows_has_the_same_bits(tiny_config: AfmoeConfig, num_rows: int) -> None:
    twins = Twins.of(tiny_config, "bfloat16", seed=num_rows)
    run(twins, twins.batch([num_rows, 0, 0, 0]))
    if num_rows <= NUM_SEQS:
        run(twins, twins.batch([1] * NUM_SEQS))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("num_rows", [1, 37])
def test_an_expert_row_that_is_not_finite_is_told_and_changes_nothing(
    tiny_config: AfmoeConfig, dtype: ComputeDtype, bad: float, num_rows: int
) -> None:
    twins = Twins.of(tiny_config, dtype, seed=7)
    run(twins, twins.batch([num_rows, 0, 0, 0]), bad)


def test_the_portable_path_has_the_same_bits(tiny_config: AfmoeConfig) -> None:
    outputs = []
    for level in (Isa.PORTABLE, LIBRARY.best_isa):
        with process_state(LIBRARY, level, threads=1):
            twins = Twins.of(tiny_config, "bfloat16", seed=3)
            batch = twins.batch([20, 0, 3, 1])
            rows = twins.fused.start(batch)
            for layer in range(tiny_config.num_dense_layers):
                twins.fused.attention(layer, rows)
                twins.fused.dense(layer, rows)
            outputs.append(rows.x_TD)
    assert torch.equal(*outputs)


def test_a_batch_whose_arrays_are_of_another_type_is_refused(tiny_config: AfmoeConfig) -> None:
    twins = Twins.of(tiny_config, "bfloat16", seed=0)
    batch = twins.batch([3, 0, 0, 0])
    wrong = replace(batch, positions_T=batch.positions_T.astype(np.int32))
    with pytest.raises(KernelInputError, match="positions"):
        twins.fused.start(wrong)


def test_a_slot_beyond_the_cache_is_refused(tiny_config: AfmoeConfig) -> None:
    twins = Twins.of(tiny_config, "bfloat16", seed=0)
    batch = twins.batch([3, 0, 0, 0])
    view = replace(batch.sliding_kv, slot_mapping_T=batch.sliding_kv.slot_mapping_T + 10_000)
    rows = twins.fused.start(replace(batch, global_kv=view, sliding_kv=view))
    with pytest.raises(KernelInputError, match="attention of layer 0"):
        twins.fused.attention(0, rows)


def test_expert_rows_of_another_type_are_refused(tiny_config: AfmoeConfig) -> None:
    twins = Twins.of(tiny_config, "bfloat16", seed=0)
    layer = tiny_config.num_dense_layers
    rows = twins.fused.start(twins.batch([3, 0, 0, 0]))
    twins.fused.route(layer, rows)
    twins.fused.shared_expert(layer, rows)
    expert_rows_ND, slots_TK = twins.expert_rows(3, torch.float32)
    with pytest.raises(KernelInputError, match="expert_rows"):
        twins.fused.finish_moe(layer, rows, expert_rows_ND, slots_TK)
    with pytest.raises(KernelInputError, match="finish_moe"):
        twins.fused.finish_moe(layer, rows, expert_rows_ND.bfloat16(), slots_TK + 100)
