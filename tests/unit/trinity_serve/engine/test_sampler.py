from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import NonFiniteLogitsError
from tests.unit.trinity_serve.engine.fakes import Choice
from trinity_serve.engine.logits_processors import AllowedTokens, Float32, build_processors
from trinity_serve.engine.philox import uniforms
from trinity_serve.engine.request import SamplingParams
from trinity_serve.engine.sampler import Sampler
from trinity_serve.engine.sampling_ops import (
    DrawSpec,
    NumpyVocabularyOps,
    row_sums,
    sorted_prefix,
)


def params(**changes: object) -> SamplingParams:
    values: dict[str, object] = {"max_tokens": 10, "seed": 3, "temperature": 1.0, "top_p": 1.0}
    return SamplingParams(**(values | changes))  # type: ignore[arg-type]


def random_logits(seed: int, rows: int, width: int, levels: int | None = None) -> Float32:
    """Normal logits; with `levels`, rounded so coarsely that many are equal."""
    logits = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32) * 3
    return logits if levels is None else np.round(logits * levels) / np.float32(levels)


def full_order(logits: Float32) -> list[int]:
    return sorted(range(len(logits)), key=lambda idx: (-logits[idx], idx))


def draw_by_the_book(logits: Float32, spec: DrawSpec) -> int:
    """The definition, by a full sort and plain sums."""
    order = full_order(logits)
    top = np.float64(logits[order[0]])
    scaled = (logits.astype(np.float64) - top) / spec.temperature
    weights = np.exp(scaled)
    kept = order
    if spec.min_p > 0:
        kept = [idx for idx in kept if scaled[idx] >= np.log(spec.min_p)]
    kept = kept[: spec.top_k] if spec.top_k else kept
    cumulative = np.add.accumulate(weights[kept])
    total = cumulative[-1] if len(kept) < len(logits) else row_sums(weights[None])[0]
    if spec.top_p < 1:
        reached = np.flatnonzero(cumulative >= spec.top_p * total)
        last = int(reached[0]) if len(reached) else len(kept) - 1
        kept, total = kept[: last + 1], cumulative[last]
    for idx, value in zip(kept, cumulative, strict=False):
        if value > spec.uniform * total:
            return idx
    return max(kept, key=lambda idx: cumulative[kept.index(idx)])


specs = st.builds(
    DrawSpec,
    temperature=st.sampled_from([0.01, 0.3, 0.8, 1.0, 2.0, 50.0]),
    top_p=st.sampled_from([0.01, 0.5, 0.8, 0.999, 1.0]),
    top_k=st.sampled_from([0, 1, 5, 300, 2999, 3000, 9999]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    uniform=st.floats(0.0, 1.0, exclude_max=True),
)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1000),
    width=st.sampled_from([1, 7, 1023, 3000]),
    levels=st.sampled_from([None, 1, 8]),
    spec=specs,
)
def test_sorting_only_candidates_draws_what_the_full_sort_draws(
    seed: int, width: int, levels: int | None, spec: DrawSpec
) -> None:
    logits = random_logits(seed, 1, width, levels)
    ops = NumpyVocabularyOps()
    (drawn,) = ops.draw(logits, logits.max(axis=1), [spec])
    assert drawn == draw_by_the_book(logits[0], spec)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 300), levels=st.sampled_from([None, 1]))
def test_a_sorted_prefix_is_a_prefix_of_the_full_order(
    seed: int, count: int, levels: int | None
) -> None:
    logits = random_logits(seed, 1, 280, levels)[0]
    logits[:4] = (0.0, -0.0, -np.inf, 0.0)
    prefix = sorted_prefix(logits, count).tolist()
    assert len(prefix) >= min(count, 280)
    assert prefix == full_order(logits)[: len(prefix)]


@pytest.mark.parametrize("width", [50, 1024, 4096, 5000])
def test_a_row_alone_equals_the_row_among_31_others(width: int) -> None:
    logits = torch.from_numpy(random_logits(width, 32, width))
    kinds = [
        params(temperature=0.0, num_logprobs=3),
        params(num_logprobs=3),
        params(top_p=0.8, temperature=0.8, num_logprobs=0),
        params(top_k=20, min_p=0.01, num_logprobs=20, frequency_penalty=0.5),
        params(min_tokens=99, stop_token_ids=frozenset(range(width // 2)), num_logprobs=1),
    ]
    choices = [
        Choice(kinds[row % 5], row, row * 3, build_processors(kinds[row % 5])) for row in range(32)
    ]
    sampler = Sampler()
    together = sampler.sample(logits, choices)
    assert together == [sampler.sample(logits[r : r + 1], choices[r : r + 1])[0] for r in range(32)]
    order = list(reversed(range(32)))
    turned = sampler.sample(logits[order], [choices[row] for row in order])
    assert turned == [together[row] for row in order]


def test_greedy_takes_the_largest_and_of_equals_the_lowest_id() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0], [-0.0, 0.0, -1.0, -1.0]])
    samples = Sampler().sample(logits, [Choice(params(temperature=0.0))] * 2)
    assert [sample.token_id for sample in samples] == [1, 0]


def test_logprobs_are_those_of_the_unmodified_logits_with_ties_to_the_lower_id() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.5]])
    how = params(temperature=0.0, num_logprobs=3, logit_bias=((3, 100.0),))
    (sample,) = Sampler().sample(logits, [Choice(how, processors=build_processors(how))])
    expected = torch.log_softmax(logits[0].double(), dim=0).float()
    assert sample.token_id == 3
    assert sample.logprobs is not None
    assert sample.logprobs.chosen == pytest.approx(float(expected[3]), rel=1e-6)
    assert [token for token, _ in sample.logprobs.top] == [1, 2, 0]
    assert [value for _, value in sample.logprobs.top] == pytest.approx(
        expected[[1, 2, 0]].tolist(), rel=1e-6
    )


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -30.0])
    count = 4000
    choices = [Choice(params(temperature=0.7), num_outputs=idx) for idx in range(count)]
    samples = Sampler().sample(logits.repeat(count, 1), choices)
    counts = np.bincount([sample.token_id for sample in samples], minlength=5)
    shares = torch.softmax(logits.double() / 0.7, dim=0).numpy()
    deviation = np.sqrt(count * shares * (1 - shares))
    assert (abs(counts - count * shares) <= 5 * deviation + 1).all()


def test_filters_keep_what_they_say() -> None:
    logits = torch.tensor([[math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]])

    def kept(**changes: object) -> set[int]:
        choices = [Choice(params(**changes), num_outputs=idx) for idx in range(300)]
        return {s.token_id for s in Sampler().sample(logits.repeat(300, 1), choices)}

    assert kept() == {0, 1, 2, 3}
    assert kept(top_k=2) == {0, 1}
    assert kept(top_p=0.7) == {0, 1}
    assert kept(top_p=0.81) == {0, 1, 2}
    assert kept(min_p=0.25) == {0, 1, 2}
    assert kept(top_k=3, top_p=0.5) == {0}
    assert kept(temperature=0.0) == {0}


def test_a_draw_is_keyed_by_seed_choice_and_output_index() -> None:
    logits = torch.zeros(1, 4096)

    def drawn(seed: int, choice: int, num_outputs: int) -> int:
        return (
            Sampler().sample(logits, [Choice(params(seed=seed), choice, num_outputs)])[0].token_id
        )

    assert drawn(1, 0, 0) == int(uniforms([1], [0], [0])[0] * 4096)
    assert len({drawn(1, 0, 0), drawn(2, 0, 0), drawn(1, 1, 0), drawn(1, 0, 1)}) == 4


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_without_a_finite_maximum_fails_alone(value: float) -> None:
    logits = torch.tensor([[0.0, value, 1.0], [0.0, 1.0, 2.0]])
    bad, good = Sampler().sample(logits, [Choice(params(temperature=0.0, num_logprobs=1))] * 2)
    assert isinstance(bad.error, NonFiniteLogitsError)
    assert good.error is None
    assert good.token_id == 2


def test_masks_that_leave_nothing_fail_the_choice() -> None:
    masks = (
        AllowedTokens(frozenset({0})),
        *build_processors(params(min_tokens=1, stop_token_ids=frozenset({0}))),
    )
    (sample,) = Sampler().sample(torch.zeros(1, 4), [Choice(params(), processors=masks)])
    assert isinstance(sample.error, NonFiniteLogitsError)


def test_a_large_vocabulary_draws_by_the_book() -> None:
    logits = random_logits(1, 2, 200_192)
    for spec in (DrawSpec(0.8, 0.8, 0, 0.0, 0.7), DrawSpec(1.0, 1.0, 0, 0.0, 0.999)):
        drawn = NumpyVocabularyOps().draw(logits, logits.max(axis=1), [spec, spec])
        assert drawn[0] == draw_by_the_book(logits[0], spec)
