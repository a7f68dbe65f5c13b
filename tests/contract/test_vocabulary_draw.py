"""Drawing in C, held to numpy: the same id, unless the draw falls between two ids' shares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.kernels.cpu.library import Isa
from tests.support.draws import row, spec_parts
from tests.support.kernels import process_state
from trinity_serve.engine.cpu_sampling import CpuVocabularyOps
from trinity_serve.engine.sampling_ops import DrawSpec, NumpyVocabularyOps
from trinity_serve.model.kernels.cpu.kernels import CpuModelKernels
from trinity_serve.model.kernels.cpu.vocabulary import CpuVocabulary

CPU = CpuModelKernels()
LIBRARY = CPU.library.experts
OURS, NUMPYS = CpuVocabularyOps(CpuVocabulary(CPU.library)), NumpyVocabularyOps()
NUDGE = 1e-5
"""fp32 weights move a share by some 1e-7 of the whole; a draw this close to a bound may differ."""


def near(spec: DrawSpec, uniform: float, top_p: float) -> DrawSpec:
    inside = min(max(uniform, 0.0), 1.0 - 1e-12)
    return DrawSpec(spec.temperature, top_p, spec.top_k, spec.min_p, inside)


@settings(max_examples=300, deadline=None)
@given(
    vocab=st.sampled_from([1, 15, 16, 17, 500, 4096]),
    seed=st.integers(0, 1000),
    spread=st.sampled_from([0.0, 0.1, 2.0, 8.0]),
    spec=st.builds(DrawSpec, **spec_parts),
)
def test_a_drawn_id_is_numpys(vocab: int, seed: int, spread: float, spec: DrawSpec) -> None:
    logits = row(vocab, seed, spread)[None]
    max_R = logits.max(axis=1)
    (got,) = OURS.draw(logits, max_R, [spec])
    shares = (spec.top_p,) if spec.top_p == 1.0 else (spec.top_p - NUDGE, spec.top_p + NUDGE)
    allowed = {
        NUMPYS.draw(logits, max_R, [near(spec, spec.uniform + nudge, top_p)])[0]
        for nudge in (-NUDGE, 0.0, NUDGE)
        for top_p in (*shares, spec.top_p)
    }
    assert got in allowed


@pytest.mark.parametrize("vocab", [7, 4096])
def test_draws_have_the_same_bits_on_every_path_and_in_any_company(vocab: int) -> None:
    logits = np.stack([row(vocab, seed, 4.0) for seed in range(1, 40)])
    specs = [DrawSpec(0.9, 0.9, 60, 0.001, seed / 40) for seed in range(39)]
    max_R = logits.max(axis=1)
    results = []
    for level in [isa for isa in Isa if isa <= LIBRARY.best_isa]:
        for threads in (1, 2):
            with process_state(LIBRARY, level, threads):
                results.append(OURS.draw(logits, max_R, specs))
    results.append(
        [OURS.draw(logits[i : i + 1], max_R[i : i + 1], [specs[i]])[0] for i in range(39)]
    )
    assert all(other == results[0] for other in results)


def test_shares_of_draws_are_the_probabilities() -> None:
    logits = np.array([[2.0, 1.0, 0.0, -1.0]], np.float32)
    uniforms = (np.arange(2000) + 0.5) / 2000
    specs = [DrawSpec(1.0, 1.0, 0, 0.0, float(u)) for u in uniforms]
    drawn = OURS.draw(np.repeat(logits, 2000, axis=0), np.full(2000, 2.0, np.float32), specs)
    want = np.exp(logits[0]) / np.exp(logits[0]).sum()
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 2000, want, atol=1e-3)


def test_a_forbidden_id_is_never_drawn_even_at_the_very_end() -> None:
    logits = np.full((1, 1000), -np.inf, np.float32)
    logits[0, [3, 700]] = 0.0
    spec = DrawSpec(1.0, 1.0, 0, 0.0, float(np.nextafter(1.0, 0.0)))
    assert OURS.draw(logits, np.zeros(1, np.float32), [spec]) == [700]
