"""Conformance and invariance of the attention side's ops, over every backend."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from cluster.errors import KernelInputError
from experts.kernels.cpu.library import Isa
from router.combine import combine
from router.gate import gate
from tests.support.attention_batches import UNSOUND, attention_batch
from tests.support.kernels import DTYPES, Sequences, assert_near, process_state, random
from tests.support.triton import TRITON_RUNS
from trinity_serve.engine.sampling_ops import NumpyVocabularyOps
from trinity_serve.model.batch import ForwardBatch, KvView
from trinity_serve.model.kernels import load_model_kernels
from trinity_serve.model.kernels.base import AttentionShape, ModelKernels
from trinity_serve.model.kernels.cpu.kernels import CpuModelKernels
from trinity_serve.model.kernels.cpu.vocabulary import CpuVocabulary
from trinity_serve.model.kernels.reference import ReferenceModelKernels

REFERENCE = ReferenceModelKernels()
CPU = CpuModelKernels()
LIBRARY = CPU.library.experts
BACKENDS: list[ModelKernels] = [REFERENCE, CPU]
if TRITON_RUNS:  # on a GPU, or interpreted: see test_kernels_interpreted.py
    BACKENDS.append(load_model_kernels("cuda"))
EPS = 1e-5
GQA = AttentionShape(6, 2, 32, EPS)
SHAPES = [GQA, AttentionShape(6, 1, 64, EPS), AttentionShape(3, 3, 24, EPS)]
WINDOWS = [None, 40]
LENGTHS = [77, 33, 1, 96]
SHORT = [43, 33, 1]
"""The reference is slow: enough for two tiles and a window that ends inside one."""


@pytest.fixture(params=list(Isa), ids=lambda isa: isa.name)
def isa(request: pytest.FixtureRequest) -> Iterator[Isa]:
    with process_state(LIBRARY, request.param, threads=2):
        yield request.param


@pytest.fixture(params=BACKENDS, ids=lambda kernels: kernels.name)
def kernels(request: pytest.FixtureRequest) -> ModelKernels:
    backend: ModelKernels = request.param
    return backend


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 24, 32, 257])
def test_norms_are_the_references(isa: Isa, dtype: torch.dtype, width: int) -> None:
    x, branch = random(9, width, dtype=dtype), random(9, width, dtype=dtype, seed=1)
    post, after = random(width, dtype=dtype, seed=2), random(width, dtype=dtype, seed=3)
    got = (CPU.rms_norm(x, post, EPS), *CPU.residual_norm(x, branch, post, after, EPS))
    want = (REFERENCE.rms_norm(x, post, EPS), *REFERENCE.residual_norm(x, branch, post, after, EPS))
    for one, other in zip(got, want, strict=True):
        assert_near(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_normed_row_has_the_same_bits_alone_and_in_company(
    kernels: ModelKernels, dtype: torch.dtype
) -> None:
    num_rows = 200 if kernels.name != "cuda" else 20
    x = random(num_rows, 96, dtype=dtype).to(kernels.device)
    branch = random(num_rows, 96, dtype=dtype, seed=1).to(kernels.device)
    weight = random(96, dtype=dtype, seed=2).to(kernels.device)
    rows = [slice(i, i + 1) for i in range(num_rows)]
    alone = [kernels.residual_norm(x[row], branch[row], weight, weight, EPS) for row in rows]
    for threads in (1, 2):
        with process_state(LIBRARY, LIBRARY.best_isa, threads):
            together = kernels.residual_norm(x, branch, weight, weight, EPS)
        for part, got in enumerate(together):
            assert torch.equal(got, torch.cat([row[part] for row in alone]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_is_the_references(
    isa: Isa, dtype: torch.dtype, window: int | None, shape: AttentionShape
) -> None:
    got = Sequences(CPU, shape, dtype, LENGTHS, window).run(piece=50)
    want = Sequences(REFERENCE, shape, dtype, LENGTHS, window).run(piece=50)
    for one, other in zip(got, want, strict=True):
        assert_near(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", WINDOWS)
def test_decoding_gives_the_bits_of_prefill_however_the_prompt_is_cut(
    kernels: ModelKernels, dtype: torch.dtype, window: int | None
) -> None:
    whole = Sequences(kernels, GQA, dtype, SHORT, window).run(piece=43)
    # Interpreted, single rows take too long; test_kernels_model_cuda.py decodes a few.
    single = () if kernels.name == "cuda" else ((1, 1),)
    for piece, threads in (*single, (7, 2), (32, 1)):
        with process_state(LIBRARY, LIBRARY.best_isa, threads):
            pieces = Sequences(kernels, GQA, dtype, SHORT, window).run(piece)
        for one, other in zip(whole, pieces, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sequence_has_the_same_bits_alone_and_in_company(
    kernels: ModelKernels, dtype: torch.dtype
) -> None:
    together = Sequences(kernels, GQA, dtype, SHORT, 40).run(piece=20)
    apart = Sequences(kernels, GQA, dtype, SHORT, 40)
    for seq in (2, 0, 1):
        parts = [
            apart.step({seq: (begin, min(begin + 20, SHORT[seq]))})[seq]
            for begin in range(0, SHORT[seq], 20)
        ]
        assert torch.equal(torch.cat(parts), together[seq])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 1500])
def test_long_contexts_give_the_same_bits_on_any_number_of_threads(
    dtype: torch.dtype, window: int | None
) -> None:
    """Beyond one chunk of 1,024 positions, one sequence is spread over the threads."""
    last = []
    for threads in (1, 2, 3):
        with process_state(LIBRARY, LIBRARY.best_isa, threads):
            sequences = Sequences(CPU, GQA, dtype, [3100], window)
            sequences.step({0: (0, 3000)})
            sequences.step({0: (3000, 3099)})
            last.append(sequences.step({0: (3099, 3100)})[0])
    assert torch.equal(last[0], last[1])
    assert torch.equal(last[0], last[2])
    whole = Sequences(CPU, GQA, dtype, [3100], window)
    assert torch.equal(whole.step({0: (0, 3100)})[0][-1:], last[0])


def test_a_long_context_is_plain_softmax() -> None:
    """Over several chunks of 1,024 positions, against one softmax in float64."""
    shape = AttentionShape(2, 1, 16, EPS)
    sequences = Sequences(CPU, shape, torch.float32, [2100])
    got = sequences.step({0: (0, 2100)})[0][[0, 1023, 1024, 2099]]
    q, k, v, open_gate = torch.split(sequences.inputs[0], [32, 16, 16, 32], dim=1)
    q_norm, k_norm = sequences.q_norm, sequences.k_norm
    q_THd = REFERENCE.rms_norm(q.reshape(-1, 16), q_norm, EPS).reshape(-1, 2, 16).double()
    k_Td = REFERENCE.rms_norm(k.contiguous(), k_norm, EPS).double()
    for row, position in enumerate((0, 1023, 1024, 2099)):
        seen = position + 1
        weights_HT = torch.softmax(q_THd[position] @ k_Td[:seen].T / 4, dim=-1)
        want = (weights_HT @ v[:seen].double()).reshape(-1) * open_gate[position].double().sigmoid()
        torch.testing.assert_close(got[row].double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set_gives_the_same_attention_bits(dtype: torch.dtype) -> None:
    outputs = []
    for level in [isa for isa in Isa if isa <= LIBRARY.best_isa]:
        with process_state(LIBRARY, level, threads=1):
            sequences = Sequences(CPU, AttentionShape(5, 1, 34, EPS), dtype, [45, 70], 40)
            outputs.append(torch.cat(sequences.run(piece=30)))
    for other in outputs[1:]:
        assert torch.equal(outputs[0], other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_an_earlier_sequence_left_in_a_block_is_never_seen(
    kernels: ModelKernels, dtype: torch.dtype
) -> None:
    clean = Sequences(kernels, GQA, dtype, [71])
    reused = Sequences(kernels, GQA, dtype, [71])
    own = reused.inputs[0]
    reused.inputs[0] = torch.full_like(own, float("nan"))
    reused.step({0: (0, 71)})
    reused.inputs[0] = own
    for begin, end in ((0, 10), (10, 11), (11, 12), (12, 40), (40, 70), (70, 71)):
        got, want = (s.step({0: (begin, end)})[0] for s in (reused, clean))
        assert torch.isfinite(got).all()
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_sequence_that_is_not_finite_shows_it_and_spares_the_others(
    kernels: ModelKernels, dtype: torch.dtype, bad: float
) -> None:
    sequences = Sequences(kernels, GQA, dtype, [40, 40])
    good = Sequences(kernels, GQA, dtype, [40, 40]).run(piece=40)
    sequences.inputs[1][:, :] = bad
    first, second = sequences.run(piece=40)
    assert torch.equal(first, good[0])
    assert not torch.isfinite(second).any()


def test_scores_far_apart_neither_overflow_nor_vanish(isa: Isa) -> None:
    shape = AttentionShape(1, 1, 16, EPS)
    outputs = []
    for backend in (REFERENCE, CPU):
        sequences = Sequences(backend, shape, torch.float32, [70])
        sequences.q_norm *= 1000
        sequences.k_norm *= 1000
        outputs.append(sequences.step({0: (0, 70)})[0])
    assert torch.isfinite(outputs[1]).all()
    torch.testing.assert_close(*outputs, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("experts", [8, 129, 256])
def test_the_gate_chooses_and_weighs_as_the_routers(isa: Isa, experts: int) -> None:
    logits, bias = random(50, experts) * 2, random(experts, seed=1) * 0.05
    ids, weights = CPU.gate_topk(logits, bias, 4, 2.448)
    want_ids, want_weights = gate(logits, bias, 4, 2.448)
    assert torch.equal(ids, want_ids)
    torch.testing.assert_close(weights, want_weights, rtol=1e-6, atol=0.0)


def test_equal_scores_go_to_the_lower_expert(kernels: ModelKernels) -> None:
    zeros = torch.zeros(4, 20, device=kernels.device)
    ids, weights = kernels.gate_topk(zeros[:3], zeros[3], 4, 1.0)
    assert ids.tolist() == [[0, 1, 2, 3]] * 3
    assert weights.tolist() == [[0.25] * 4] * 3


def test_a_gate_that_is_not_finite_shows_in_the_weights_and_names_distinct_experts(
    isa: Isa,
) -> None:
    logits = random(2, 16)
    logits[0] = float("nan")
    logits[1] = -float("inf")
    ids, weights = CPU.gate_topk(logits, torch.full((16,), -float("inf")), 4, 1.0)
    assert torch.isnan(weights[0]).all()
    assert [len(set(row)) for row in ids.tolist()] == [4, 4]


@pytest.mark.parametrize("dtype", DTYPES)
def test_gate_rows_do_not_depend_on_their_company(
    kernels: ModelKernels, dtype: torch.dtype
) -> None:
    logits, bias = random(27, 37).to(kernels.device), random(37, seed=1).to(kernels.device)
    _, together = kernels.gate_topk(logits, bias, 4, 2.0)
    alone = [kernels.gate_topk(row[None], bias, 4, 2.0)[1] for row in logits]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [5, 64])
def test_combine_has_the_bits_of_the_routers(isa: Isa, dtype: torch.dtype, width: int) -> None:
    rows, shared = random(80, width, dtype=dtype), random(20, width, dtype=dtype, seed=1)
    weights = random(20, 4, seed=2).abs()
    slots = np.random.RandomState(0).permutation(80).reshape(20, 4).astype(np.int64)
    arguments = (rows, slots, weights, shared)
    assert torch.equal(CPU.combine(*arguments), combine(*arguments))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 55.42562584220407])
def test_embed_has_the_bits_of_torch(isa: Isa, dtype: torch.dtype, scale: float) -> None:
    table, ids = random(30, 33, dtype=dtype), np.array([3, 0, 29, 3], np.int64)
    assert torch.equal(CPU.embed(ids, table, scale), REFERENCE.embed(ids, table, scale))


@pytest.mark.parametrize("vocab", [1, 15, 1024, 5000])
def test_vocabulary_reductions_are_numpys(isa: Isa, vocab: int) -> None:
    logits = (random(7, vocab) * 5).numpy()
    logits[1] = 0.25  # all equal: the lowest id
    if vocab > 20:
        logits[2, [9, 4000 % vocab]] = 99.0
        logits[3, 17] = np.nan
        logits[4, : vocab // 2] = -np.inf
    ours, numpys = CpuVocabulary(CPU.library), NumpyVocabularyOps()
    best = ours.argmax(logits)
    assert np.array_equal(best, numpys.argmax(logits))
    peaks = logits[np.arange(7), best]
    finite = np.isfinite(peaks)
    got, want = (o.log_sum_exp(logits[finite], peaks[finite]) for o in (ours, numpys))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


def test_vocabulary_reductions_have_the_same_bits_on_every_path() -> None:
    logits = (random(3, 3000) * 8).numpy()
    results = []
    for level in [isa for isa in Isa if isa <= LIBRARY.best_isa]:
        for threads in (1, 2):
            with process_state(LIBRARY, level, threads):
                ops = CpuVocabulary(CPU.library)
                results.append(ops.log_sum_exp(logits, logits.max(axis=1)).tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize("changes", UNSOUND.values(), ids=UNSOUND)
def test_a_batch_that_points_outside_the_cache_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(KernelInputError):
        write_and_attend(*attention_batch(**changes))


def test_the_sound_batch_of_these_tests_is_taken() -> None:
    assert write_and_attend(*attention_batch()).shape == (40, 6 * 32)


def write_and_attend(batch: ForwardBatch, view: KvView) -> Tensor:
    cache = CPU.new_kv_cache(1, 2, GQA, torch.float32)
    qkvg, norm, rope = random(40, GQA.qkvg_width), torch.ones(32), random(64, 32)
    q = CPU.write_kv(qkvg, norm, norm, GQA, batch.positions_T, rope, view, cache, 0)
    return CPU.paged_attention(q, qkvg, GQA, batch, view, cache, 0, None)


def test_a_layer_that_the_cache_lacks_is_refused() -> None:
    batch, view = attention_batch()
    cache = CPU.new_kv_cache(1, 2, GQA, torch.float32)
    qkvg, norm = random(40, GQA.qkvg_width), torch.ones(32)
    with pytest.raises(KernelInputError, match="layer"):
        CPU.write_kv(qkvg, norm, norm, GQA, batch.positions_T, None, view, cache, 1)


def test_the_cache_counts_its_bytes() -> None:
    cache = CPU.new_kv_cache(3, 7, GQA, torch.bfloat16)
    assert cache.nbytes == 3 * 7 * 32 * 2 * (2 * 32) * 2


def test_auto_takes_the_c_kernels_where_they_are_built() -> None:
    assert load_model_kernels("auto").name == ("cuda" if torch.cuda.is_available() else "cpu")
    assert load_model_kernels("reference").name == "reference"
