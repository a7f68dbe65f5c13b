"""The Triton kernels of the attention side, held to the reference and to themselves.

Runs where Triton runs: on a GPU, or through its interpreter (`test_kernels_interpreted.py` starts
that). What every backend must do is in `test_kernels_model.py`, which has this one too then.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from cluster.errors import KernelInputError
from router.combine import combine
from router.gate import gate
from tests.support.attention_batches import UNSOUND, attention_batch
from tests.support.kernels import DTYPES, Sequences, assert_near, random
from tests.support.triton import needs_triton
from trinity_serve.model.batch import ForwardBatch, KvView
from trinity_serve.model.kernels import load_model_kernels
from trinity_serve.model.kernels.base import AttentionShape
from trinity_serve.model.kernels.reference import ReferenceModelKernels

if TYPE_CHECKING:
    from trinity_serve.model.kernels.cuda.cache import CudaKv
    from trinity_serve.model.kernels.cuda.kernels import CudaModelKernels

pytestmark = needs_triton

REFERENCE = ReferenceModelKernels()
EPS = 1e-5
GQA = AttentionShape(6, 2, 32, EPS)
SHAPES = [GQA, AttentionShape(3, 3, 24, EPS)]
LENGTHS = [43, 33, 1]
CHUNK = 1024


@pytest.fixture(scope="module")
def cuda() -> CudaModelKernels:
    return cast("CudaModelKernels", load_model_kernels("cuda"))


def on(kernels: CudaModelKernels, *tensors: Tensor) -> list[Tensor]:
    return [tensor.to(kernels.device) for tensor in tensors]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 24, 257])
def test_norms_are_the_references(cuda: CudaModelKernels, dtype: torch.dtype, width: int) -> None:
    x, branch = random(9, width, dtype=dtype), random(9, width, dtype=dtype, seed=1)
    post, after = random(width, dtype=dtype, seed=2), random(width, dtype=dtype, seed=3)
    x_there, branch_there, post_there, after_there = on(cuda, x, branch, post, after)
    got = (
        cuda.rms_norm(x_there, post_there, EPS),
        *cuda.residual_norm(x_there, branch_there, post_there, after_there, EPS),
    )
    want = (REFERENCE.rms_norm(x, post, EPS), *REFERENCE.residual_norm(x, branch, post, after, EPS))
    for one, other in zip(got, want, strict=True):
        assert_near(one.cpu(), other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_is_the_references(
    cuda: CudaModelKernels, dtype: torch.dtype, window: int | None, shape: AttentionShape
) -> None:
    got = Sequences(cuda, shape, dtype, LENGTHS, window).run(piece=30)
    want = Sequences(REFERENCE, shape, dtype, LENGTHS, window).run(piece=30)
    for one, other in zip(got, want, strict=True):
        assert_near(one.cpu(), other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 40])
def test_single_rows_have_the_bits_of_a_prefill(
    cuda: CudaModelKernels, dtype: torch.dtype, window: int | None
) -> None:
    whole, decoded = (Sequences(cuda, GQA, dtype, [43, 34], window) for _ in range(2))
    want = whole.step({0: (0, 43), 1: (0, 34)})
    decoded.step({0: (0, 40), 1: (0, 31)})
    for row in range(3):
        got = decoded.step({1: (31 + row, 32 + row), 0: (40 + row, 41 + row)})
        for seq, rows in got.items():
            assert torch.equal(rows[0], want[seq][row - 3])


def long_sequence(
    cuda: CudaModelKernels, shape: AttentionShape, dtype: torch.dtype, window: int | None
) -> Sequences:
    """A sequence with random K and V in place, as if it had been written before."""
    sequences = Sequences(cuda, shape, dtype, [2 * CHUNK + 40], window)
    cache = cast("CudaKv", sequences.cache)
    cache.keys.copy_(random(*cache.keys.shape, seed=1))
    cache.values.copy_(random(*cache.values.shape, seed=2))
    return sequences


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, CHUNK + 26])
def test_chunks_side_by_side_have_the_bits_of_one_program_and_of_prefill(
    cuda: CudaModelKernels, dtype: torch.dtype, window: int | None
) -> None:
    """Three chunks of 1,024 positions; the window begins inside one."""
    sequences = long_sequence(cuda, AttentionShape(2, 1, 16, EPS), dtype, window)
    end = len(sequences.inputs[0])
    rows = {}
    for name, wanted in (("whole", 0), ("chunks", 1 << 30)):
        cuda.programs_wanted = wanted
        rows[name] = sequences.step({0: (end - 9, end)})[0]
        rows[f"{name}, decode"] = sequences.step({0: (end - 1, end)})[0]
    for name, got in rows.items():
        assert torch.equal(got, rows["whole"][-len(got) :]), name


def test_a_long_context_is_plain_softmax(cuda: CudaModelKernels) -> None:
    """Over three chunks, against one softmax in float64."""
    sequences = long_sequence(cuda, AttentionShape(2, 1, 16, EPS), torch.float32, None)
    cache, table = cast("CudaKv", sequences.cache), sequences.tables_BM[0]
    q, _, _, open_gate = torch.split(sequences.inputs[0].cpu(), [32, 16, 16, 32], dim=1)
    q_norm = sequences.q_norm.cpu()
    q_THd = REFERENCE.rms_norm(q.reshape(-1, 16), q_norm, EPS).reshape(-1, 2, 16).double()
    for position in (1023, 1024, 2087):
        got = sequences.step({0: (position, position + 1)})[0][0].cpu()
        layer = (cache.keys[Sequences.LAYER], cache.values[Sequences.LAYER])
        k_Td, v_Td = (part.cpu()[table].reshape(-1, 16).double() for part in layer)
        weights_HT = torch.softmax(q_THd[position] @ k_Td[: position + 1].T / 4, dim=-1)
        want = (weights_HT @ v_Td[: position + 1]).reshape(-1)
        want *= open_gate[position].double().sigmoid()
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_scores_far_apart_neither_overflow_nor_vanish(cuda: CudaModelKernels) -> None:
    outputs = []
    for backend in (cuda, REFERENCE):
        sequences = Sequences(backend, AttentionShape(1, 1, 16, EPS), torch.float32, [40])
        sequences.q_norm *= 1000
        sequences.k_norm *= 1000
        outputs.append(sequences.step({0: (0, 40)})[0].cpu())
    assert torch.isfinite(outputs[0]).all()
    torch.testing.assert_close(*outputs, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("experts", [8, 129, 256])
def test_the_gate_chooses_and_weighs_as_the_routers(cuda: CudaModelKernels, experts: int) -> None:
    logits, bias = random(13, experts) * 2, random(experts, seed=1) * 0.05
    ids, weights = cuda.gate_topk(logits.to(cuda.device), bias.to(cuda.device), 4, 2.448)
    want_ids, want_weights = gate(logits, bias, 4, 2.448)
    assert torch.equal(ids.cpu(), want_ids)
    torch.testing.assert_close(weights.cpu(), want_weights, rtol=1e-6, atol=0.0)


def test_a_gate_that_is_not_finite_shows_in_the_weights_and_names_distinct_experts(
    cuda: CudaModelKernels,
) -> None:
    logits = random(2, 16)
    logits[0] = math.nan
    logits[1] = -math.inf
    bias = torch.full((16,), -math.inf, device=cuda.device)
    ids, weights = cuda.gate_topk(logits.to(cuda.device), bias, 4, 1.0)
    assert torch.isnan(weights[0]).all()
    assert [len(set(row)) for row in ids.tolist()] == [4, 4]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [5, 1100])
def test_combine_has_the_bits_of_the_routers(
    cuda: CudaModelKernels, dtype: torch.dtype, width: int
) -> None:
    rows, shared = random(20, width, dtype=dtype), random(5, width, dtype=dtype, seed=1)
    weights = random(5, 4, seed=2).abs()
    slots = np.random.RandomState(0).permutation(20).reshape(5, 4).astype(np.int64)
    there = on(cuda, rows, weights, shared)
    got = cuda.combine(there[0], slots, there[1], there[2])
    assert torch.equal(got.cpu(), combine(rows, slots, weights, shared))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 55.42562584220407])
def test_embed_has_the_bits_of_torch(
    cuda: CudaModelKernels, dtype: torch.dtype, scale: float
) -> None:
    table, ids = random(30, 33, dtype=dtype), np.array([3, 0, 29, 3], np.int64)
    got = cuda.embed(ids, table.to(cuda.device), scale)
    assert torch.equal(got.cpu(), REFERENCE.embed(ids, table, scale))


@pytest.mark.parametrize("changes", UNSOUND.values(), ids=UNSOUND)
def test_a_batch_that_points_outside_the_cache_is_refused(
    cuda: CudaModelKernels, changes: dict[str, object]
) -> None:
    with pytest.raises(KernelInputError):
        write_and_attend(cuda, *attention_batch(**changes))


def test_the_sound_batch_of_these_tests_is_taken(cuda: CudaModelKernels) -> None:
    assert write_and_attend(cuda, *attention_batch()).shape == (40, 6 * 32)


def write_and_attend(cuda: CudaModelKernels, batch: ForwardBatch, view: KvView) -> Tensor:
    cache = cuda.new_kv_cache(1, 2, GQA, torch.float32)
    parts = random(40, GQA.qkvg_width), torch.ones(32), random(64, 32)
    qkvg, norm, rope = on(cuda, *parts)
    q = cuda.write_kv(qkvg, norm, norm, GQA, batch.positions_T, rope, view, cache, 0)
    return cuda.paged_attention(q, qkvg, GQA, batch, view, cache, 0, None)


def test_a_layer_that_the_cache_lacks_is_refused(cuda: CudaModelKernels) -> None:
    batch, view = attention_batch()
    cache = cuda.new_kv_cache(1, 2, GQA, torch.float32)
    qkvg, norm = on(cuda, random(40, GQA.qkvg_width), torch.ones(32))
    with pytest.raises(KernelInputError, match="layer"):
        cuda.write_kv(qkvg, norm, norm, GQA, batch.positions_T, None, view, cache, 1)


@pytest.mark.parametrize("shape", [AttentionShape(5, 2, 16, EPS), AttentionShape(4, 2, 512, EPS)])
def test_a_shape_that_the_kernels_do_not_take_is_refused(
    cuda: CudaModelKernels, shape: AttentionShape
) -> None:
    with pytest.raises(KernelInputError, match="shape"):
        cuda.new_kv_cache(1, 1, shape, torch.float32)


def test_the_cache_counts_its_bytes(cuda: CudaModelKernels) -> None:
    cache = cuda.new_kv_cache(3, 7, GQA, torch.bfloat16)
    assert cache.nbytes == 3 * 7 * 32 * 2 * (2 * 32) * 2


def test_a_step_is_uploaded_once_and_the_next_one_anew(cuda: CudaModelKernels) -> None:
    positions, later = np.arange(5, dtype=np.int64), np.arange(5, dtype=np.int64) + 1
    first = cuda.on_device(positions)
    assert cuda.on_device(positions) is first
    assert cuda.on_device(later).tolist() == later.tolist()
