"""Two ranks and the index of their ingress: shared prompts are found, and change no bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.serving import Serving, config_for, open_serving
from trinity_serve.engine.request import GenerationRequest, SamplingParams
from trinity_serve.prefix_index import PrefixIndex, prompt_digests
from trinity_serve.routing import RankLoad, order_ranks

SEEDED = SamplingParams(max_tokens=12, seed=3, temperature=0.8, ignore_eos=True)
NUM_TURNS = 4


Prompt = tuple[int, ...]
Outcome = dict[Prompt, tuple[list[int], torch.Tensor]]


def ids_of(seed: int, count: int) -> Prompt:
    return tuple(np.random.default_rng(seed).integers(13, 512, count).tolist())


SYSTEM_PROMPTS = [ids_of(seed, 150) for seed in range(2)]


def outcome_of(serving: Serving, prompts: Sequence[Prompt]) -> Outcome:
    """Return each prompt's tokens and the logits they were chosen from."""
    serving.sampler.logits.clear()
    tokens = serving.run(prompts, SEEDED)
    return {
        prompt: (ids, serving.sampler.of(prompt))
        for prompt, ids in zip(prompts, tokens, strict=True)
    }


class Routed:
    """Two ranks behind a router."""

    def __init__(self, ranks: dict[str, Serving]) -> None:
        self.ranks = ranks
        self.index = PrefixIndex()
        self.now_s = 0.0

    def place(self, prompts: Sequence[Prompt]) -> list[str]:
        """Return the rank of each prompt, all of them open at once."""
        self.now_s += 1.0
        open_calls = dict.fromkeys(self.ranks, 0)
        placed = []
        for prompt in prompts:
            digests = prompt_digests(GenerationRequest("r", 0, prompt, SEEDED))
            loads = [
                RankLoad(rank, count, self.index.cached_tokens(rank, digests, self.now_s))
                for rank, count in open_calls.items()
            ]
            rank = order_ranks(loads)[0]
            self.index.sent(rank, digests, self.now_s)
            open_calls[rank] += 1
            placed.append(rank)
        return placed

    def run(self, prompts: Sequence[Prompt], placed: Sequence[str]) -> Outcome:
        """Return each prompt's tokens and logits; those on one rank run in one batch."""
        outcome: Outcome = {}
        for rank, serving in self.ranks.items():
            mine = [prompt for prompt, home in zip(prompts, placed, strict=True) if home == rank]
            outcome |= outcome_of(serving, mine)
        return outcome

    def counted(self, name: str) -> float:
        return sum(rank.engine.stats().extra[name] for rank in self.ranks.values())


@pytest.fixture(scope="module")
def routed(tiny_checkpoint: Path) -> Routed:
    config = config_for(tiny_checkpoint)
    return Routed({name: open_serving(config) for name in "ab"})


def test_chats_that_share_a_system_prompt_hit_and_give_the_bits_of_a_cold_run(
    routed: Routed, tiny_checkpoint: Path
) -> None:
    """Eight chats of four turns: each turn's prompt holds all that came before."""
    cold = open_serving(config_for(tiny_checkpoint), prefix_cache=False)
    chats = [(*SYSTEM_PROMPTS[number % 2], *ids_of(100 + number, 20)) for number in range(8)]
    homes: list[set[str]] = [set() for _ in chats]
    for turn in range(NUM_TURNS):
        placed = routed.place(chats)
        ours, theirs = routed.run(chats, placed), outcome_of(cold, chats)
        for number, prompt in enumerate(chats):
            homes[number].add(placed[number])
            tokens, logits = ours[prompt]
            assert theirs[prompt][0] == tokens
            assert torch.equal(theirs[prompt][1], logits)
            chats[number] = (*prompt, *tokens, *ids_of(1000 * turn + number, 25))
    assert cold.engine.stats().extra["prefix_cache_hits"] == 0.0
    # Both ranks serve, and each chat stays where its turns are cached.
    assert set().union(*homes) == {"a", "b"}
    assert [len(each) for each in homes] == [1] * len(chats)
    assert routed.counted("prefix_cache_hits") > 0.6 * routed.counted("prefix_cache_queries")
