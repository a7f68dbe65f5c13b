from __future__ import annotations

import numpy as np

from trinity_serve.engine.logits_processors import build_processors
from trinity_serve.engine.request import SamplingParams


def processed(params: SamplingParams, prompt: list[int], outputs: list[int]) -> list[float]:
    logits = np.array([2.0, -2.0, 1.0, 0.5, 4.0], np.float32)
    for processor in build_processors(params):
        if processor.is_active(len(outputs)):
            processor.apply(logits, np.array(prompt, np.int64), np.array(outputs, np.int64))
    values: list[float] = logits.tolist()
    return values


def test_without_options_there_are_no_processors() -> None:
    assert build_processors(SamplingParams(max_tokens=1, seed=1)) == ()


def test_repetition_penalises_prompt_and_outputs_by_sign() -> None:
    params = SamplingParams(max_tokens=9, seed=1, repetition_penalty=2.0)
    assert processed(params, [0, 1], []) == [1.0, -4.0, 1.0, 0.5, 4.0]
    assert processed(params, [0, 1, 0], [2, 2]) == [1.0, -4.0, 0.5, 0.5, 4.0]


def test_frequency_counts_outputs_and_presence_counts_them_once() -> None:
    params = SamplingParams(max_tokens=9, seed=1, frequency_penalty=0.5, presence_penalty=1.0)
    assert processed(params, [0, 0], []) == [2.0, -2.0, 1.0, 0.5, 4.0]
    assert processed(params, [0], [4, 4, 3]) == [2.0, -2.0, 1.0, -1.0, 2.0]


def test_bias_is_added_and_masks_win_over_it() -> None:
    params = SamplingParams(
        max_tokens=9,
        seed=1,
        logit_bias=((1, 100.0), (4, -1.0)),
        allowed_token_ids=frozenset({1, 2, 4}),
        stop_token_ids=frozenset({1}),
        min_tokens=2,
    )
    assert processed(params, [0], [2]) == [-np.inf, -np.inf, 1.0, -np.inf, 3.0]
    assert processed(params, [0], [2, 2]) == [-np.inf, 98.0, 1.0, -np.inf, 3.0]


def test_a_bad_word_is_forbidden_where_it_would_be_completed() -> None:
    params = SamplingParams(max_tokens=9, seed=1, bad_words=((4,), (2, 3), (2, 2, 0)))
    inf = float("inf")
    assert processed(params, [2], []) == [2.0, -2.0, 1.0, 0.5, -inf]
    assert processed(params, [], [1, 2]) == [2.0, -2.0, 1.0, -inf, -inf]
    assert processed(params, [], [2, 2]) == [-inf, -2.0, 1.0, -inf, -inf]
