"""Two ranks on one shard process: a slow one, and one that dies, leave the other's bits alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from cluster.deadline import Deadline
from cluster.placement import Placement, ShardInfo
from cluster.transport import transport_for
from cluster.transport.session import Session, open_session
from cluster.types import PlacementVersion, ShardId
from cluster.wire import Hello
from experts.checkpoint import Checkpoint
from tests.support.serving import Serving, config_for, open_serving, serving_over
from tests.support.shards import ShardProcess
from trinity_serve.arithmetic import Arithmetic
from trinity_serve.engine.request import GenerationRequest, SamplingParams
from trinity_serve.rank import ShardAccess

SEEDED = SamplingParams(max_tokens=24, seed=5, temperature=0.8, ignore_eos=True)
PROMPTS = [np.random.default_rng(n).integers(13, 512, 20).tolist() for n in range(4)]


@pytest.fixture(scope="module")
def shard(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ShardProcess]:
    folder = tmp_path_factory.mktemp("shard")
    listen = ("--listen", f"unix:{folder}/s", "--die-with-parent", str(os.getpid()))
    arguments = ("--model", str(tiny_checkpoint), "--shard", "0/1", *listen)
    with ShardProcess.start(*arguments, errors_to=folder / "stderr") as process:
        yield process


def rank_over(
    shard: ShardProcess, path: Path, number: int, executor: ThreadPoolExecutor
) -> Serving:
    config, checkpoint = config_for(path), Checkpoint.open(str(path))
    model, arithmetic = checkpoint.config, Arithmetic.settle(config, checkpoint)
    info = ShardInfo(ShardId(0), shard.addresses["unix"], shard.incarnation)
    version = PlacementVersion(1, 1)
    placement = Placement.sliced(version, (info,), model.num_moe_layers, model.num_experts)

    def connect(info: ShardInfo, deadline: Deadline) -> Session:
        hello = Hello(arithmetic.fingerprint, number, number, 1, "")
        return open_session(transport_for(info.address), info.address, hello, deadline)

    return serving_over(config, checkpoint, (ShardAccess(connect, executor), placement))


def tokens_beside(ours: Serving, other: Serving, every: int, dies_at: int) -> list[list[int]]:
    """Run the prompts on both; the other makes one step in `every`, none from `dies_at` on."""
    tokens: dict[str, list[int]] = {f"r{number}": [] for number in range(len(PROMPTS))}
    for serving in (ours, other):
        for number, prompt in enumerate(PROMPTS):
            serving.engine.submit(GenerationRequest(f"r{number}", 0, tuple(prompt), SEEDED))
    for step in range(1000):
        if not ours.engine.has_work:
            break
        if step == dies_at:
            other.runner.dispatcher.close()
        elif step < dies_at and step % every == 0 and other.engine.has_work:
            assert all(event.error is None for event in other.engine.step(step / 1000))
        for event in ours.engine.step(step / 1000):
            assert event.error is None
            if event.token_id is not None:
                tokens[event.request_id].append(event.token_id)
    return list(tokens.values())


@pytest.mark.parametrize(("every", "dies_at"), [(1, 1000), (5, 1000), (1, 9)])
def test_a_rank_ends_with_the_same_tokens_whatever_the_other_does(
    tiny_checkpoint: Path, shard: ShardProcess, every: int, dies_at: int
) -> None:
    alone = open_serving(config_for(tiny_checkpoint)).run(PROMPTS, SEEDED)
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        ours = rank_over(shard, tiny_checkpoint, 1, first)
        other = rank_over(shard, tiny_checkpoint, 2, second)
        with closing(ours.runner.dispatcher), closing(other.runner.dispatcher):
            assert tokens_beside(ours, other, every, dies_at) == alone
