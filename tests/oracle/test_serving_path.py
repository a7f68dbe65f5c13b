"""The serving path (paged KV, chunks, shards) against the oracle and transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.model_config import AfmoeConfig
from tests.oracle.afmoe_oracle import OracleWeights, oracle_forward
from tests.support.greedy import assert_same_tokens, random_prompts, transformers_tokens
from tests.support.serving import config_for, open_serving
from trinity_serve.engine.request import SamplingParams
from trinity_serve.model.batch import ForwardBatch, KvView

GREEDY = SamplingParams(max_tokens=24, seed=0, temperature=0.0, ignore_eos=True)


def one_sequence(ids: list[int], start: int, stop: int, num_blocks: int) -> ForwardBatch:
    """Rows start … stop-1 of a sequence whose KV blocks are numbered from 0."""
    positions = np.arange(start, stop)
    view = KvView(np.arange(num_blocks, dtype=np.int32)[None], positions)
    return ForwardBatch(
        np.array(ids[start:stop]),
        positions,
        np.array([0, stop - start], np.int32),
        view,
        view,
        np.arange(stop - start),
    )


@pytest.mark.parametrize("kernels", ["reference", "auto"])
@pytest.mark.parametrize("length", [1, 39, 40, 41, 150])
def test_logits_and_chosen_experts_are_the_oracles(
    tiny_checkpoint: Path, tiny_config: AfmoeConfig, kernels: str, length: int
) -> None:
    [ids] = random_prompts([length], seed=length)
    wanted = oracle_forward(OracleWeights.load(tiny_checkpoint), ids)
    serving = open_serving(config_for(tiny_checkpoint, num_shards=3, kernels=kernels))
    chosen: list[torch.Tensor] = []
    dispatcher = serving.runner.dispatcher
    dispatcher.observe = lambda layer, topk_ids: chosen.append(topk_ids.clone())
    logits_TV = serving.runner.forward(one_sequence(ids, 0, length, 8))
    limit = 1e-5 * float(wanted.logits_TV.abs().max())
    assert float((logits_TV - wanted.logits_TV).abs().max()) <= limit
    for ours, theirs in zip(chosen, wanted.topk_ids, strict=True):
        assert torch.equal(ours.sort(dim=-1).values, theirs.sort(dim=-1).values)


@pytest.fixture(scope="module")
def wanted_tokens(tiny_checkpoint: Path) -> list[list[int]]:
    return transformers_tokens(tiny_checkpoint, random_prompts(), GREEDY.max_tokens)


@pytest.mark.parametrize("kernels", ["reference", "auto"])
def test_greedy_tokens_of_sixteen_prompts_are_those_of_transformers(
    tiny_checkpoint: Path, wanted_tokens: list[list[int]], kernels: str
) -> None:
    serving = open_serving(config_for(tiny_checkpoint, num_shards=2, kernels=kernels))
    assert_same_tokens(serving.run(random_prompts(), GREEDY), wanted_tokens)
