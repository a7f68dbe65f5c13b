"""Two shard processes that each hold every expert, and ranks over them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.deadline import Deadline
from cluster.metrics import Metrics
from cluster.placement import IntArray, Placement, ShardInfo
from cluster.transport import transport_for
from cluster.transport.base import Transport
from cluster.transport.session import Session, open_session
from cluster.types import PlacementVersion, ShardId
from cluster.wire import Hello
from experts.checkpoint import Checkpoint
from router.dispatcher import Dispatcher
from tests.support.shards import ShardProcess
from trinity_serve.arithmetic import Arithmetic
from trinity_serve.config import ServeConfig
from trinity_serve.engine.engine import Engine
from trinity_serve.rank import ShardAccess, build_rank

CONNECT_S = 30.0


@contextmanager
def two_full_shards(
    path: Path, folder: Path, threads: int = 1, scheme: str = "unix"
) -> Iterator[list[ShardProcess]]:
    """Start both; the thread that calls must outlive them."""

    def start(index: int) -> ShardProcess:
        return full_shard(path, folder / str(index), threads, scheme)

    # The threads that start shards outlive them: `--die-with-parent` means the thread.
    with ThreadPoolExecutor(2) as starting, ExitStack() as stack:
        yield [stack.enter_context(shard) for shard in starting.map(start, range(2))]


def full_shard(path: Path, folder: Path, threads: int = 1, scheme: str = "unix") -> ShardProcess:
    """Start a shard with every expert, which listens in a folder of its own."""
    listen = ("--listen", f"{scheme}:{folder}/socket", "--threads", str(threads))
    life = ("--die-with-parent", str(os.getpid()))
    arguments = ("--model", str(path), "--shard", "0/1", *listen, *life)
    return ShardProcess.start(*arguments, errors_to=folder.with_suffix(".log"))


@dataclass(frozen=True)
class ReplicaRank:
    """An engine that has reached both shards, and what its dispatcher counted."""

    engine: Engine
    metrics: Metrics
    dispatcher: Dispatcher


def placement_over(
    shards: Sequence[ShardProcess], checkpoint: Checkpoint, version: int = 1
) -> Placement:
    """Each shard is the first copy of every second expert, the other one the second.

    Both call themselves shard 0: their lives tell them apart.
    """
    infos = tuple(
        ShardInfo(ShardId(0), next(iter(shard.addresses.values())), shard.incarnation)
        for shard in shards
    )
    model = checkpoint.config
    copies_EC = [[expert % 2, 1 - expert % 2] for expert in range(model.num_experts)]
    copies_LEC: IntArray = np.array([copies_EC] * model.num_moe_layers, np.int32)
    return Placement(PlacementVersion(1, version), infos, copies_LEC)


@contextmanager
def rank_over(
    shards: Sequence[ShardProcess],
    config: ServeConfig,
    number: int,
    carrier: Transport | None = None,
) -> Iterator[ReplicaRank]:
    """Load a rank over both shards; by `carrier`, or else by what their addresses say."""
    checkpoint = Checkpoint.open(config.model.path)
    arithmetic, metrics = Arithmetic.settle(config, checkpoint), Metrics()
    if carrier is not None:
        carrier.metrics = metrics

    def connect(info: ShardInfo, deadline: Deadline) -> Session:
        hello = Hello(arithmetic.fingerprint, number, number, 1, "")
        transport = carrier or transport_for(info.address)
        return open_session(transport, info.address, hello, deadline)

    with ThreadPoolExecutor(2) as connecting:
        access = ShardAccess(connect, connecting)
        runner, sizes = build_rank(config, checkpoint, arithmetic, access, metrics, number)
        with closing(runner.dispatcher):
            runner.dispatcher.publish(placement_over(shards, checkpoint))
            deadline = Deadline.after(CONNECT_S)
            while runner.dispatcher.missing():
                assert not deadline.expired(), runner.dispatcher.missing()
                runner.wait(0.02)
            yield ReplicaRank(Engine(runner, sizes), metrics, runner.dispatcher)
