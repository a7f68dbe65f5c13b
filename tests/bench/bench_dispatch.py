"""One MoE layer's round trip: rows out to the shards and back, by transport, rows and shards.

    python -m tests.bench.bench_dispatch --model tiny --transports inproc unix grpc --shards 1 4

Real shards with real weights, random rows, uniformly chosen experts; the dispatcher as a rank uses
it. `inproc` computes on the caller's thread and carries nothing: what the others take beyond it is
the transport's, less what shards gain by computing side by side. `collective+…` sends rows by Gloo
from `--group-from-bytes` on, once every shard has its group.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cluster.deadline import Deadline
from cluster.metrics import Metric, Metrics
from cluster.placement import Placement, ShardInfo
from cluster.torch_dtypes import TORCH_DTYPES
from cluster.transport import transport_for
from cluster.transport.collective.limits import Limits
from cluster.transport.collective.transport import CollectiveTransport
from cluster.transport.session import Session, open_session
from cluster.types import PlacementVersion, ShardId
from cluster.wire import Hello
from experts.checkpoint import Checkpoint
from router.config import DispatchConfig
from router.dispatcher import Dispatcher
from router.links import Connect, ShardLinks
from router.sender import RankIdentity
from tests.bench.bench_serving import checkpoints
from tests.bench.report import Figure, Machine, report
from tests.support.serving import config_for
from tests.support.shards import ShardProcess
from trinity_serve.arithmetic import Arithmetic
from trinity_serve.inline import CallerExecutor, InprocShards
from trinity_serve.synthetic import PRESETS

BINDS = {
    "unix": "unix:{folder}/{index}",
    "grpc": "grpc://127.0.0.1:0",
    "collective+unix": "collective+unix:{folder}/{index}",
    "collective+grpc": "collective+grpc://127.0.0.1:0",
}
ROWS = (1, 4, 16, 64, 256)
CONNECT_S = 30.0


@dataclass(frozen=True)
class Model:
    """A checkpoint and what it is computed with."""

    checkpoint: Checkpoint
    arithmetic: Arithmetic

    @classmethod
    def open(cls, path: Path) -> Model:
        """Read the configuration."""
        checkpoint = Checkpoint.open(str(path))
        return cls(checkpoint, Arithmetic.settle(config_for(path), checkpoint))


@contextmanager
def connected(
    model: Model,
    connect: Connect,
    executor: Executor,
    placement: Placement,
    groups: Metrics | None = None,
) -> Iterator[Dispatcher]:
    """Yield a dispatcher that has reached every shard; by a group each, counted in `groups`."""
    config = DispatchConfig()
    identity = RankIdentity(0, 1, model.arithmetic.fingerprint.model)
    links = ShardLinks(connect, executor, config)
    with closing(Dispatcher(identity, links, config, Metrics())) as dispatcher:
        dispatcher.publish(placement)
        deadline = Deadline.after(CONNECT_S)
        while missing := dispatcher.missing():
            if deadline.expired():
                raise RuntimeError("; ".join(missing))
            dispatcher.wait(0.05)
        wanted = 0 if groups is None else len(placement.shards)
        while groups is not None and groups[Metric.COLLECTIVE_GROUPS] < wanted:
            if deadline.expired():
                raise RuntimeError(f"{wanted} groups were not formed within {CONNECT_S:g} s")
            dispatcher.wait(0.05)
        yield dispatcher


@contextmanager
def over_inproc(model: Model, path: Path, num_shards: int) -> Iterator[Dispatcher]:
    """Shards in this process, computing with every core."""
    model.arithmetic.kernels.set_threads(len(os.sched_getaffinity(0)))
    config = config_for(path, num_shards=num_shards)
    shards = InprocShards(config, model.checkpoint, model.arithmetic)
    with connected(model, shards.connect, CallerExecutor(), shards.placement) as dispatcher:
        yield dispatcher


@contextmanager
def over_processes(
    model: Model, path: Path, num_shards: int, transport: str, limits: Limits
) -> Iterator[Dispatcher]:
    """Shards as processes that share the cores."""
    by_groups = Metrics() if transport.startswith("collective") else None
    threads = max(1, len(os.sched_getaffinity(0)) // num_shards)
    fingerprint = model.arithmetic.fingerprint

    def connect(shard: ShardInfo, deadline: Deadline) -> Session:
        hello = Hello(fingerprint, 0, 1, 1, "")
        carrier = transport_for(shard.address) if by_groups is None else CollectiveTransport(limits)
        carrier.metrics = by_groups
        return open_session(carrier, shard.address, hello, deadline)

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="d-")))
        infos = []
        for index in range(num_shards):
            listen = BINDS[transport].format(folder=folder, index=index)
            arguments = ("--model", str(path), "--shard", f"{index}/{num_shards}")
            options = ("--threads", str(threads), "--die-with-parent", str(os.getpid()))
            started = ShardProcess.start(
                *arguments, *options, "--listen", listen, errors_to=folder / f"log{index}"
            )
            process = stack.enter_context(started)
            address = process.addresses[transport]
            infos.append(ShardInfo(ShardId(index), address, process.incarnation))
        config = model.checkpoint.config
        placement = Placement.sliced(
            PlacementVersion(1, 1), tuple(infos), config.num_moe_layers, config.num_experts
        )
        executor = stack.enter_context(ThreadPoolExecutor(num_shards))
        yield stack.enter_context(connected(model, connect, executor, placement, by_groups))


def layer_times_s(dispatcher: Dispatcher, model: Model, rows: int, steps: int) -> list[float]:
    """Return the round trip of each layer of each step, after one step to warm up."""
    config = model.checkpoint.config
    rng = np.random.default_rng(rows)
    dtype = TORCH_DTYPES[model.arithmetic.dtype]
    hidden_TD = torch.randn(rows, config.hidden_size).to(dtype)
    times = []
    for step in range(steps + 1):
        dispatcher.begin_step()
        for layer in range(config.num_moe_layers):
            scores_TE = rng.random((rows, config.num_experts))
            topk_ids_TK = np.argsort(scores_TE, axis=1)[:, : config.num_experts_per_tok]
            ids_TK = np.ascontiguousarray(topk_ids_TK.astype(np.int64))
            begun_s = time.perf_counter()
            dispatcher.collect(dispatcher.dispatch(layer, hidden_TD, ids_TK))
            if step:
                times.append(time.perf_counter() - begun_s)
    return times


def figures(dispatcher: Dispatcher, model: Model, steps: int) -> Iterator[Figure]:
    """Yield median and 99th percentile by rows."""
    for rows in ROWS:
        times_s = layer_times_s(dispatcher, model, rows, steps)
        labels = {"rows": rows}
        yield Figure("dispatch_p50", float(np.median(times_s)) * 1e6, "us", labels)
        yield Figure("dispatch_p99", float(np.quantile(times_s, 0.99)) * 1e6, "us", labels)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny", choices=sorted(PRESETS))
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept between runs")
    transports = ["inproc", *BINDS]
    parser.add_argument("--transports", nargs="+", default=transports, choices=transports)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--group-from-bytes", type=int, default=Limits().least_rows_bytes)
    options = parser.parse_args(arguments)
    limits = Limits(least_rows_bytes=options.group_from_bytes)
    machine = Machine.here()
    with checkpoints([options.model], options.folder) as [path]:
        model = Model.open(path)
        for transport in options.transports:
            for shards in options.shards:
                opened = (
                    over_inproc(model, path, shards)
                    if transport == "inproc"
                    else over_processes(model, path, shards, transport, limits)
                )
                with opened as dispatcher:
                    for figure in figures(dispatcher, model, options.steps):
                        what = {"model": options.model, "transport": transport, "shards": shards}
                        report(machine, figure, **what)


if __name__ == "__main__":
    main()
