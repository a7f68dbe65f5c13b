"""Scoring as lm-eval's `local-completions` does it, over HTTP, against transformers.

Log-likelihood: prompt ids with `echo`, `logprobs: 1` and `max_tokens: 0` or 1; the sum over the
continuation and whether greedy decoding would have made it. Generation: greedy until a stop string.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import httpx
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.support.http import inline_server
from tests.support.serving import config_for

RNG = np.random.default_rng(3)
CONTEXTS = [RNG.integers(13, 512, length).tolist() for length in (1, 5, 40, 77)]
CONTINUATIONS = [RNG.integers(13, 512, length).tolist() for length in (1, 3, 9)]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def http(tiny_checkpoint: Path) -> Iterator[httpx.Client]:
    with (
        inline_server(config_for(tiny_checkpoint, num_shards=2)) as url,
        httpx.Client(base_url=url, timeout=30.0) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def theirs(tiny_checkpoint: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(
        str(tiny_checkpoint), dtype=torch.float32, attn_implementation="eager"
    )
    return cast(PreTrainedModel, model)


def log_probabilities(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """(T, V): what transformers says after each of `ids`."""
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), dim=-1)


def complete(http: httpx.Client, **fields: object) -> dict[str, object]:
    response = http.post("/v1/completions", json=fields)
    assert response.status_code == 200, response.text
    return cast(dict[str, object], response.json()["choices"][0])


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("context", CONTEXTS, ids=len)
def test_loglikelihoods_are_those_of_transformers(
    http: httpx.Client, theirs: PreTrainedModel, context: list[int], max_tokens: int
) -> None:
    for continuation in CONTINUATIONS:
        ids = context + continuation
        choice = complete(
            http, prompt=ids, echo=True, logprobs=1, max_tokens=max_tokens, temperature=0
        )
        logprobs = cast(dict[str, list[object]], choice["logprobs"])
        span = slice(len(context), len(ids))
        ours = cast(list[float], logprobs["token_logprobs"][span])
        greedy = [
            max(top, key=lambda name: top[name]) == token
            for token, top in zip(
                cast(list[str], logprobs["tokens"][span]),
                cast(list[dict[str, float]], logprobs["top_logprobs"][span]),
                strict=True,
            )
        ]
        rows_TV = log_probabilities(theirs, ids)[len(context) - 1 : -1]
        expected = rows_TV[torch.arange(len(continuation)), torch.tensor(continuation)]
        assert ours == pytest.approx(expected.tolist(), abs=TOLERANCE)
        assert greedy == (rows_TV.argmax(-1) == torch.tensor(continuation)).tolist()


def test_a_continuation_that_greedy_decoding_makes_is_told_as_such(
    http: httpx.Client, theirs: PreTrainedModel
) -> None:
    made = complete(
        http,
        prompt=CONTEXTS[2],
        max_tokens=4,
        temperature=0,
        ignore_eos=True,
        return_token_ids=True,
    )
    ids = CONTEXTS[2] + cast(list[int], made["token_ids"])
    choice = complete(http, prompt=ids, echo=True, logprobs=1, max_tokens=0)
    logprobs = cast(dict[str, list[object]], choice["logprobs"])
    for token, top in zip(logprobs["tokens"][-4:], logprobs["top_logprobs"][-4:], strict=True):
        assert max(cast(dict[str, float], top).items(), key=lambda item: item[1])[0] == token


def test_all_tokens_of_a_prompt_are_scored_with_rank(
    http: httpx.Client, theirs: PreTrainedModel
) -> None:
    choice = complete(http, prompt=CONTEXTS[3], prompt_logprobs=0, max_tokens=1)
    scores = cast(list[dict[str, dict[str, float]]], choice["prompt_logprobs"])
    rows_TV = log_probabilities(theirs, CONTEXTS[3])
    for row_V, token, score in zip(rows_TV, CONTEXTS[3][1:], scores[1:], strict=False):
        told = score[str(token)]
        assert told["logprob"] == pytest.approx(float(row_V[token]), abs=TOLERANCE)
        assert told["rank"] == int((row_V > row_V[token]).sum()) + 1
