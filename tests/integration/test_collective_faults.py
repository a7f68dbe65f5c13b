"""A shard killed while rows are under way by its group: no request fails, no token changes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cluster.deadline import Deadline
from cluster.metrics import Metric
from cluster.wire import DEFAULT_MAX_FRAME_BYTES
from experts.checkpoint import Checkpoint
from tests.contract.transport_cases import CASES
from tests.support.replicas import (
    ReplicaRank,
    full_shard,
    placement_over,
    rank_over,
    two_full_shards,
)
from tests.support.serving import config_for, open_serving
from trinity_serve.engine.request import GenerationRequest, SamplingParams

SCHEME = "collective+unix"
DEADLINE_S = 60.0
SEEDED = SamplingParams(max_tokens=32, seed=11, temperature=0.8, ignore_eos=True)
PROMPTS = [np.random.default_rng(n).integers(13, 512, 12).tolist() for n in range(8)]


def tokens_of(rank: ReplicaRank, name: str, each_step: Callable[[], None]) -> list[list[int]]:
    """Run all prompts together; `each_step` is called before every step."""
    tokens: dict[str, list[int]] = {f"{name}{number}": [] for number in range(len(PROMPTS))}
    for request, prompt in zip(tokens, PROMPTS, strict=True):
        rank.engine.submit(GenerationRequest(request, 0, tuple(prompt), SEEDED))
    for step in range(10_000):
        if not rank.engine.has_work:
            break
        each_step()
        for event in rank.engine.step(step / 1000):
            assert event.error is None, event.error
            if event.token_id is not None:
                tokens[event.request_id].append(event.token_id)
    return list(tokens.values())


def await_groups(rank: ReplicaRank, count: int) -> None:
    """Wait until so many groups have been confirmed since the start."""
    deadline = Deadline.after(DEADLINE_S)
    while rank.metrics[Metric.COLLECTIVE_GROUPS] < count:
        assert not deadline.expired(), f"no group {count} within {DEADLINE_S} s"
        rank.dispatcher.wait(0.02)


@pytest.mark.timeout(300)
def test_a_member_killed_during_exchanges_costs_a_pause_and_the_next_one_gets_a_group(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config = config_for(tiny_checkpoint)
    alone = open_serving(config).run(PROMPTS, SEEDED)
    carrier = CASES[SCHEME].make(DEFAULT_MAX_FRAME_BYTES)
    with (
        two_full_shards(tiny_checkpoint, tmp_path, scheme=SCHEME) as shards,
        rank_over(shards, config, 0, carrier) as rank,
    ):
        await_groups(rank, 2)
        killers: list[threading.Thread] = []

        def kill_amid_rows() -> None:
            # Two hundred exchanges later the streams are a third done; the rank is then sending
            # and waiting without a pause, and a thread's turn falls anywhere in that.
            if rank.metrics[Metric.COLLECTIVE_FRAMES] >= 200 and not killers:
                killers.append(threading.Thread(target=shards[0].signal, args=(signal.SIGKILL,)))
                killers[0].start()

        assert tokens_of(rank, "killed", kill_amid_rows) == alone
        killers[0].join(DEADLINE_S)
        assert rank.metrics[Metric.SHARDS_LOST] == 1
        with full_shard(tiny_checkpoint, tmp_path / "next", scheme=SCHEME) as following:
            checkpoint = Checkpoint.open(config.model.path)
            rank.dispatcher.publish(placement_over([following, shards[1]], checkpoint, 2))
            await_groups(rank, 3)
            before = rank.metrics[Metric.COLLECTIVE_FRAMES]
            assert tokens_of(rank, "again", lambda: None) == alone
            assert rank.metrics[Metric.COLLECTIVE_FRAMES] > before
