"""Drawing in Triton, held to C: the same ids for the same logits.

Runs where Triton runs (see `test_kernels_model_cuda.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.draws import row, spec_parts
from tests.support.kernels import random
from tests.support.triton import TRITON_RUNS, needs_triton
from trinity_serve.engine.cpu_sampling import CpuVocabularyOps
from trinity_serve.engine.logits_processors import LogitsProcessor
from trinity_serve.engine.philox import uniforms
from trinity_serve.engine.request import SamplingParams
from trinity_serve.engine.sampler import Sampler
from trinity_serve.engine.sampling_ops import DrawSpec, NumpyVocabularyOps
from trinity_serve.model.batch import Int64
from trinity_serve.model.kernels import load_model_kernels
from trinity_serve.model.kernels.cpu.kernels import CpuModelKernels
from trinity_serve.model.kernels.cpu.vocabulary import CpuVocabulary

if TYPE_CHECKING or TRITON_RUNS:
    from trinity_serve.engine.cuda_sampling import CudaSampler, CudaVocabularyOps
    from trinity_serve.model.kernels.cuda.vocabulary import CudaVocabulary

pytestmark = needs_triton

IN_C = CpuVocabularyOps(CpuVocabulary(CpuModelKernels().library))
NONE = np.zeros(0, np.int64)


@pytest.fixture(scope="module")
def vocabulary() -> CudaVocabulary:
    return CudaVocabulary(load_model_kernels("cuda").device)


@dataclass(frozen=True)
class Choice:
    """What the sampler reads of a choice."""

    params: SamplingParams
    choice: int = 0
    num_outputs: int = 0
    prompt_ids: Int64 = field(default_factory=lambda: NONE)
    output_ids: Int64 = field(default_factory=lambda: NONE)

    def active_processors(self) -> list[LogitsProcessor]:
        return []


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    vocab=st.sampled_from([1, 15, 17, 500, 4097]),
    seed=st.integers(0, 1000),
    spread=st.sampled_from([0.0, 0.1, 2.0, 8.0]),
    spec=st.builds(DrawSpec, **spec_parts),
)
def test_a_drawn_id_is_cs(
    vocabulary: CudaVocabulary, vocab: int, seed: int, spread: float, spec: DrawSpec
) -> None:
    logits = row(vocab, seed, spread)[None]
    peak = logits.max(axis=1)
    got = CudaVocabularyOps(vocabulary).draw(logits, peak, [spec])
    assert got == IN_C.draw(logits, peak, [spec])


@pytest.mark.parametrize("vocab", [1, 15, 1024, 5000])
def test_the_largest_logit_is_numpys(vocabulary: CudaVocabulary, vocab: int) -> None:
    logits = (random(7, vocab) * 5).numpy()
    logits[1] = 0.25  # all equal: the lowest id
    logits[5], logits[6] = -np.inf, np.where(logits[6] > 0, 0.0, -0.0)
    if vocab > 20:
        logits[2, [9, 4000 % vocab]] = 99.0
        logits[3, 17] = np.nan
        logits[4, : vocab // 2] = -np.inf
    best, peaks = vocabulary.argmax(torch.from_numpy(logits).to(vocabulary.device))
    want = NumpyVocabularyOps().argmax(logits)
    assert best.tolist() == want.tolist()
    assert np.array_equal(peaks.cpu().numpy(), logits[np.arange(7), want], equal_nan=True)


def test_a_uniform_of_the_device_is_philoxs(vocabulary: CudaVocabulary) -> None:
    """A draw from equal logits tells its uniform: the id is the uniform's share of the row."""
    seeds, choices, outputs = [0, 17, -1, 2**63 + 5], [0, 1, 2**31, 3], [0, 5, 2**33, 1]
    vocab = 4096
    whole = np.array(
        [
            (np.array(seed & (2**64 - 1), np.uint64).astype(np.int64), choice, output, 0)
            for seed, choice, output in zip(seeds, choices, outputs, strict=True)
        ],
        np.int64,
    )
    reals = np.tile(np.array([1.0, 1.0, -np.inf, 0.0]), (4, 1))
    logits = torch.zeros(4, vocab, device=vocabulary.device)
    drawn = vocabulary.draw(logits, logits[:, 0].contiguous(), reals, whole, seeded=True)
    want = np.floor(uniforms(seeds, choices, outputs) * vocab).astype(int)
    assert drawn.tolist() == want.tolist()


def test_tokens_chosen_on_the_device_are_those_of_the_host(vocabulary: CudaVocabulary) -> None:
    """Greedy, seeded, with log-probabilities, and a row that is not finite, in one step."""
    drawn = SamplingParams(4, seed=3, temperature=0.9, top_p=0.9, top_k=40, min_p=0.01)
    greedy = SamplingParams(4, seed=1, temperature=0.0)
    told = SamplingParams(4, seed=9, temperature=1.2, top_p=1.0, num_logprobs=2)
    choices = [Choice(drawn, 1, 7), Choice(greedy), Choice(told), Choice(drawn, 0, 2), Choice(told)]
    logits = random(5, 700) * 3
    logits[3, 11] = float("nan")
    want = Sampler(IN_C).sample(logits, choices)
    got = CudaSampler(vocabulary).sample(logits.to(vocabulary.device), choices)
    assert [sample.token_id for sample in got] == [sample.token_id for sample in want]
    assert [type(sample.error) for sample in got] == [type(sample.error) for sample in want]
    assert got[3].error is not None
    for one, other in zip(got, want, strict=True):
        assert (one.logprobs is None) == (other.logprobs is None)
        if one.logprobs is not None and other.logprobs is not None:
            assert one.logprobs.chosen == pytest.approx(other.logprobs.chosen, abs=1e-5)
