"""A real shard process that stops for a while is overtaken by the other copy: the same tokens."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np

from cluster.metrics import Metric
from tests.support.replicas import ReplicaRank, rank_over, two_full_shards
from tests.support.serving import config_for, open_serving
from trinity_serve.config import ServeConfig
from trinity_serve.engine.request import GenerationRequest, SamplingParams

# So many streams that a layer's rows for one shard are always of a size that was measured.
NUM_STREAMS = 32
SEEDED = SamplingParams(max_tokens=48, seed=11, temperature=0.8, ignore_eos=True)
PROMPTS = [np.random.default_rng(n).integers(13, 512, 12).tolist() for n in range(NUM_STREAMS)]
WARM_UP_STEPS, STOPPED_STEPS = 24, 8


def patient(path: Path) -> ServeConfig:
    """A configuration under which no shard counts as dead while the test runs."""
    config = config_for(path)
    experts = config.experts.model_copy(update={"dead_after_s": 100.0})
    return config.model_copy(update={"experts": experts})


class Run:
    """The prompts' streams, step by step."""

    def __init__(self, rank: ReplicaRank) -> None:
        self.rank = rank
        self.num_steps = 0
        self.tokens: dict[str, list[int]] = {f"r{number}": [] for number in range(NUM_STREAMS)}
        for name, prompt in zip(self.tokens, PROMPTS, strict=True):
            rank.engine.submit(GenerationRequest(name, 0, tuple(prompt), SEEDED))

    def step(self) -> None:
        for event in self.rank.engine.step(self.num_steps / 1000):
            assert event.error is None, event.error
            if event.token_id is not None:
                self.tokens[event.request_id].append(event.token_id)
        self.num_steps += 1


def test_steps_go_on_while_a_shard_is_stopped_and_it_is_not_charged_for_it(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    alone = open_serving(config_for(tiny_checkpoint)).run(PROMPTS, SEEDED)
    with (
        two_full_shards(tiny_checkpoint, tmp_path) as shards,
        rank_over(shards, patient(tiny_checkpoint), 0) as rank,
    ):
        run = Run(rank)
        for _ in range(WARM_UP_STEPS):
            run.step()
        shards[0].signal(signal.SIGSTOP)
        # Nothing else than a hedge could end these: the shard answers nothing, and counts as alive.
        for _ in range(STOPPED_STEPS):
            run.step()
        assert rank.metrics[Metric.HEDGES_WON] >= 1
        shards[0].signal(signal.SIGCONT)
        while rank.engine.has_work:
            run.step()
        assert list(run.tokens.values()) == alone
        assert rank.metrics[Metric.SHARDS_LOST] == rank.metrics[Metric.DISPATCH_RETRIES] == 0
