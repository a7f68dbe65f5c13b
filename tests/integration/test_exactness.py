"""The exactness contract: the same request gives the same bits, whatever is around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cluster.errors import ConfigError
from cluster.types import ComputeDtype
from experts.kernels import KernelName, load_expert_kernels
from tests.support.serving import Serving, config_for, open_serving
from trinity_serve.engine.request import SamplingParams
from trinity_serve.model.batch import KV_BLOCK_SIZE


def random_ids(count: int) -> list[int]:
    """Return ids of no special token; another count gives others."""
    ids: list[int] = np.random.default_rng(count).integers(13, 512, count).tolist()
    return ids


@dataclass(frozen=True)
class Case:
    """Kernels and dtype, and how much of everything: the reference computes tokens one by one."""

    kernels: KernelName
    dtype: ComputeDtype
    num_others: int
    prompt_tokens: int = 70
    max_tokens: int = 40
    longest_other: int = 90

    def __str__(self) -> str:
        return f"{self.kernels}-{self.dtype}"

    @property
    def prompt(self) -> list[int]:
        """Its length is past the window, so that blocks are freed on the way."""
        return random_ids(self.prompt_tokens)

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(
            max_tokens=self.max_tokens, seed=11, temperature=0.8, top_p=0.8, ignore_eos=True
        )

    @property
    def others(self) -> list[list[int]]:
        lengths = np.random.default_rng(3).integers(1, self.longest_other, self.num_others)
        return [random_ids(int(length)) for length in lengths]

    def serve(self, checkpoint: Path, num_shards: int = 1, **engine_sizes: int) -> Serving:
        """Open a server of the checkpoint with these kernels."""
        config = config_for(
            checkpoint, num_shards=num_shards, kernels=self.kernels, dtype=self.dtype
        )
        return open_serving(config, **engine_sizes)

    def outcome(
        self, serving: Serving, others: Sequence[list[int]] = ()
    ) -> tuple[list[int], Tensor]:
        """Return the tokens of the prompt and the logits they were chosen from."""
        prompts = [*others, self.prompt]
        return serving.run(prompts, self.params)[-1], serving.sampler.of(self.prompt)


COMPILED = [
    Case("cpu", "float32", num_others=31),
    Case("cpu", "bfloat16", num_others=31),
]
REFERENCE = Case(
    "reference", "float32", num_others=3, prompt_tokens=45, max_tokens=6, longest_other=45
)


@dataclass(frozen=True)
class Undisturbed:
    """What a case gives with one shard, alone, the prompt in one chunk."""

    case: Case
    checkpoint: Path
    tokens: list[int]
    logits: Tensor

    def assert_same(self, serving: Serving, others: Sequence[list[int]] = ()) -> None:
        tokens, logits = self.case.outcome(serving, others)
        assert tokens == self.tokens
        assert torch.equal(logits, self.logits)

    def serve(self, num_shards: int = 1, **engine_sizes: int) -> Serving:
        return self.case.serve(self.checkpoint, num_shards, **engine_sizes)


@pytest.fixture(scope="module", params=[*COMPILED, REFERENCE], ids=str)
def undisturbed(request: pytest.FixtureRequest, tiny_checkpoint: Path) -> Undisturbed:
    case: Case = request.param
    try:
        load_expert_kernels(case.kernels)
    except ConfigError as error:
        pytest.skip(str(error))
    tokens, logits = case.outcome(case.serve(tiny_checkpoint))
    return Undisturbed(case, tiny_checkpoint, tokens, logits)


@pytest.mark.parametrize("num_shards", [2, 3, 4, 8])
def test_bits_do_not_depend_on_the_number_of_shards(
    undisturbed: Undisturbed, num_shards: int
) -> None:
    undisturbed.assert_same(undisturbed.serve(num_shards))


def test_bits_do_not_depend_on_others_in_the_batch(undisturbed: Undisturbed) -> None:
    undisturbed.assert_same(undisturbed.serve(3), undisturbed.case.others)


@pytest.mark.parametrize("chunk", [1, 7, 33])
def test_bits_do_not_depend_on_how_the_prompt_is_chunked(
    undisturbed: Undisturbed, chunk: int
) -> None:
    sizes = {"max_prefill_chunk": chunk, "max_num_batched_tokens": max(chunk, 5), "max_num_seqs": 5}
    undisturbed.assert_same(undisturbed.serve(**sizes), undisturbed.case.others[::7])


@pytest.mark.parametrize("undisturbed", COMPILED, indirect=True, ids=str)
def test_bits_survive_preemption(undisturbed: Undisturbed) -> None:
    # Each may grow by two blocks, and admission sets one aside per sequence.
    others = [random_ids(KV_BLOCK_SIZE - n) for n in range(1, 9)]
    serving = undisturbed.serve(2, num_global_blocks=10)
    undisturbed.assert_same(serving, others)
    assert serving.engine.stats().num_preemptions > 0


def test_bits_are_those_of_a_cold_run_when_the_prefix_is_cached(undisturbed: Undisturbed) -> None:
    serving = undisturbed.serve(2)
    undisturbed.assert_same(serving)
    serving.sampler.logits.clear()
    undisturbed.assert_same(serving)
    assert serving.engine.stats().extra["prefix_cache_hits"] > 0
