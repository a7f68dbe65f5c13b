"""The exactness contract: the same request gives the same bits, whatever is around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.serving import Serving, config_for, open_serving
from trinity_serve.engine.request import SamplingParams

SEEDED = SamplingParams(max_tokens=40, seed=11, temperature=0.8, top_p=0.8, ignore_eos=True)
PROMPT = np.random.default_rng(5).integers(13, 512, 70).tolist()


def others(count: int) -> list[list[int]]:
    rng = np.random.default_rng(count)
    return [rng.integers(13, 512, int(length)).tolist() for length in rng.integers(1, 90, count)]


def outcome(
    serving: Serving, neighbours: list[list[int]] | None = None
) -> tuple[list[int], Tensor]:
    """Return the tokens of PROMPT and the logits they were chosen from."""
    prompts = [*(neighbours or []), PROMPT]
    return serving.run(prompts, SEEDED)[-1], serving.sampler.of(PROMPT)


@pytest.fixture(scope="module")
def undisturbed(tiny_checkpoint: Path) -> tuple[list[int], Tensor]:
    """One shard, alone, the prompt in one chunk."""
    return outcome(open_serving(config_for(tiny_checkpoint)))


@pytest.mark.parametrize("num_shards", [2, 3, 4, 8])
def test_bits_do_not_depend_on_the_number_of_shards(
    tiny_checkpoint: Path, undisturbed: tuple[list[int], Tensor], num_shards: int
) -> None:
    tokens, logits = outcome(open_serving(config_for(tiny_checkpoint, num_shards=num_shards)))
    assert tokens == undisturbed[0]
    assert torch.equal(logits, undisturbed[1])


def test_bits_do_not_depend_on_thirty_one_others(
    tiny_checkpoint: Path, undisturbed: tuple[list[int], Tensor]
) -> None:
    serving = open_serving(config_for(tiny_checkpoint, num_shards=3))
    tokens, logits = outcome(serving, others(31))
    assert tokens == undisturbed[0]
    assert torch.equal(logits, undisturbed[1])


@pytest.mark.parametrize("chunk", [1, 7, 33])
def test_bits_do_not_depend_on_how_the_prompt_is_chunked(
    tiny_checkpoint: Path, undisturbed: tuple[list[int], Tensor], chunk: int
) -> None:
    sizes = {"max_prefill_chunk": chunk, "max_num_batched_tokens": max(chunk, 5), "max_num_seqs": 5}
    tokens, logits = outcome(open_serving(config_for(tiny_checkpoint), **sizes), others(4))
    assert tokens == undisturbed[0]
    assert torch.equal(logits, undisturbed[1])


def test_bits_survive_preemption(
    tiny_checkpoint: Path, undisturbed: tuple[list[int], Tensor]
) -> None:
    serving = open_serving(config_for(tiny_checkpoint, num_shards=2), num_global_blocks=10)
    tokens, logits = outcome(serving, others(8))
    assert serving.engine.stats().num_preemptions > 0
    assert tokens == undisturbed[0]
    assert torch.equal(logits, undisturbed[1])


def test_bits_are_those_of_a_cold_run_when_the_prefix_is_cached(
    tiny_checkpoint: Path, undisturbed: tuple[list[int], Tensor]
) -> None:
    serving = open_serving(config_for(tiny_checkpoint, num_shards=2))
    first, _ = outcome(serving)
    serving.sampler.logits.clear()
    again, logits = outcome(serving)
    assert serving.engine.stats().extra["prefix_cache_hits"] > 0
    assert first == again == undisturbed[0]
    assert torch.equal(logits, undisturbed[1])
