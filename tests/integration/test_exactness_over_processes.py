"""Shards that are processes, over each transport that leaves a process: the bits of one process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cluster.deadline import Deadline
from cluster.metrics import Metric, Metrics
from cluster.placement import Placement, ShardInfo
from cluster.transport.session import Session, open_session
from cluster.types import PlacementVersion, ShardId
from cluster.wire import DEFAULT_MAX_FRAME_BYTES, Hello
from experts.checkpoint import Checkpoint
from tests.contract.transport_cases import CASES, DEADLINE_S, PROCESS_BINDS
from tests.support.serving import Serving, config_for, open_serving, serving_over
from tests.support.shards import ShardProcess
from trinity_serve.arithmetic import Arithmetic
from trinity_serve.engine.request import SamplingParams
from trinity_serve.rank import ShardAccess

SEEDED = SamplingParams(max_tokens=24, seed=11, temperature=0.8, top_p=0.8, ignore_eos=True)
PROMPTS = [np.random.default_rng(n).integers(13, 512, 9 + 20 * n).tolist() for n in range(4)]
OTHERS = [np.random.default_rng(n).integers(13, 512, 3 * n + 1).tolist() for n in range(4, 32)]


def outcome(
    serving: Serving, others: Sequence[list[int]] = ()
) -> tuple[list[list[int]], list[Tensor]]:
    """Return tokens and logits of all prompts, run together and with others."""
    serving.sampler.logits.clear()
    tokens = serving.run([*PROMPTS, *others], SEEDED)[: len(PROMPTS)]
    return tokens, [serving.sampler.of(prompt) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def one_process(tiny_checkpoint: Path) -> tuple[list[list[int]], list[Tensor]]:
    return outcome(open_serving(config_for(tiny_checkpoint)))


@pytest.fixture(
    scope="module",
    params=[4, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 2, 3, 8))],
    ids="{} shards".format,
)
def processes(
    request: pytest.FixtureRequest,
    tiny_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[list[ShardProcess]]:
    """All shards of a model, each listening over every transport."""
    count = int(request.param)

    def start(index: int) -> ShardProcess:
        folder = tmp_path_factory.mktemp(f"shard{index}-")
        listen = [each for bind in PROCESS_BINDS.values() for each in ("--listen", bind(folder))]
        part = ("--shard", f"{index}/{count}", "--die-with-parent", str(os.getpid()))
        arguments = ("--model", str(tiny_checkpoint), *part, *listen)
        return ShardProcess.start(*arguments, errors_to=folder / "stderr")

    # The starting threads outlive their shards, which would end with them.
    with ThreadPoolExecutor(count) as starting, ExitStack() as stack:
        yield [stack.enter_context(shard) for shard in starting.map(start, range(count))]


def await_groups(serving: Serving, metrics: Metrics, count: int) -> None:
    """Wait until so many groups have been confirmed."""
    deadline = Deadline.after(DEADLINE_S)
    while metrics[Metric.COLLECTIVE_GROUPS] < count:
        assert not deadline.expired(), f"{count} groups were not formed in {DEADLINE_S} s"
        serving.runner.wait(0.02)


@pytest.mark.parametrize("transport", PROCESS_BINDS)
def test_bits_do_not_depend_on_processes_and_transport(
    tiny_checkpoint: Path,
    one_process: tuple[list[list[int]], list[Tensor]],
    processes: list[ShardProcess],
    transport: str,
) -> None:
    config, checkpoint = config_for(tiny_checkpoint), Checkpoint.open(str(tiny_checkpoint))
    model = checkpoint.config
    fingerprint = Arithmetic.settle(config, checkpoint).fingerprint

    metrics = Metrics()

    def connect(shard: ShardInfo, deadline: Deadline) -> Session:
        hello = Hello(fingerprint, 0, 1, 1, "")
        carrier = CASES[transport].make(DEFAULT_MAX_FRAME_BYTES)
        carrier.metrics = metrics
        return open_session(carrier, shard.address, hello, deadline)

    shards = tuple(
        ShardInfo(ShardId(index), process.addresses[transport], process.incarnation)
        for index, process in enumerate(processes)
    )
    version = PlacementVersion(1, 1)
    placement = Placement.sliced(version, shards, model.num_moe_layers, model.num_experts)
    with ThreadPoolExecutor(2) as connecting:
        access = ShardAccess(connect, connecting)
        serving = serving_over(config, checkpoint, (access, placement))
        by_groups = transport.startswith("collective")
        await_groups(serving, metrics, len(shards) if by_groups else 0)
        among_others, alone = outcome(serving, OTHERS), outcome(serving)
        serving.runner.dispatcher.close()
    assert (metrics[Metric.COLLECTIVE_FRAMES] > 0) == by_groups
    for tokens, logits in (among_others, alone):
        assert tokens == one_process[0]
        assert all(map(torch.equal, logits, one_process[1]))
