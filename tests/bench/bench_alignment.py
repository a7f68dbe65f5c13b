"""Weight bytes that a shard reads per token as ranks are added: calls of one layer share a product.

    python -m tests.bench.bench_alignment --model small --ranks 1 2 4 --streams 16

One shard with every expert and each rank are processes of their own, over Unix sockets, without
Ray. Every rank decodes `--streams` sequences of its own, so that what is computed grows with the
ranks; if their calls never met, the bytes per token would stay those of one rank. The shard counts
what its products read, and what the same calls would have read one by one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cluster.deadline import Deadline
from cluster.model_config import AfmoeConfig
from cluster.placement import Placement, ShardInfo
from cluster.transport import transport_for
from cluster.transport.session import Session, open_session
from cluster.types import PlacementVersion, ShardId, ShardSlice
from cluster.wire import ExpertCall, Hello
from experts.checkpoint import Checkpoint
from experts.shard import ExpertShard, ShardIdentity
from experts.shard_loop import ShardLoop
from experts.store import ExpertStore
from tests.bench.bench_serving import checkpoints
from tests.bench.ceiling import StepBytes
from tests.bench.report import Figure, Machine, report
from tests.support.serving import Serving, config_for, serving_over
from trinity_serve.arithmetic import Arithmetic
from trinity_serve.engine.request import GenerationRequest, SamplingParams
from trinity_serve.rank import ShardAccess
from trinity_serve.synthetic import PRESETS

START_S = 120.0
RUN_S = 600.0
INCARNATION = 1


@dataclass(frozen=True)
class Counted:
    """What a shard has computed since its start."""

    rows: int = 0
    calls: int = 0
    products: int = 0
    experts_read: int = 0
    """Experts whose weights a product read, over all products."""
    experts_called: int = 0
    """The same if every call had been a product of its own."""

    def __sub__(self, before: Counted) -> Counted:
        return Counted(
            self.rows - before.rows,
            self.calls - before.calls,
            self.products - before.products,
            self.experts_read - before.experts_read,
            self.experts_called - before.experts_called,
        )


class CountingShard(ExpertShard):
    """Counts what its products read."""

    counted = Counted()

    def compute(self, calls: Sequence[ExpertCall]) -> list[Tensor]:
        """See `ExpertShard.compute`."""
        ids = [call.expert_ids_G for call in calls]
        before = self.counted
        self.counted = Counted(
            before.rows + sum(len(call.token_idx_N) for call in calls),
            before.calls + len(calls),
            before.products + 1,
            before.experts_read + len(np.unique(np.concatenate(ids))),
            before.experts_called + sum(map(len, ids)),
        )
        return super().compute(calls)


def run_shard(path: str, address: str, asked: Connection) -> None:
    """Serve until told None; answer everything else with what was counted."""
    checkpoint = Checkpoint.open(path)
    arithmetic = Arithmetic.settle(config_for(Path(path)), checkpoint)
    arithmetic.kernels.set_threads(1)
    store = ExpertStore.empty(arithmetic.config, arithmetic.kernels, arithmetic.dtype)
    store.load_slice(checkpoint, ShardSlice(0, 1))
    identity = ShardIdentity(0, INCARNATION, arithmetic.fingerprint.model)
    shard = CountingShard(identity, store)
    with closing(transport_for(address).listen(address)) as listener:
        loop = ShardLoop(shard, [listener], arithmetic.fingerprint)
        asked.send(shard.counted)
        while True:
            loop.run_once(0.01)
            if asked.poll():
                if asked.recv() is None:
                    break
                asked.send(shard.counted)
        loop.close()


@dataclass(frozen=True)
class Work:
    """What each rank does."""

    path: str
    address: str
    streams: int
    tokens: int


def run_rank(rank: int, work: Work, ready: Connection, go: Event) -> None:
    """Prefill, say so, wait for `go`, and decode to the end."""
    torch.set_num_threads(1)
    with ThreadPoolExecutor(1) as executor:
        serving = connected(rank, work, executor)
        rng = np.random.default_rng(rank)
        params = SamplingParams(max_tokens=work.tokens, seed=rank, temperature=0.8, ignore_eos=True)
        for stream in range(work.streams):
            ids = tuple(rng.integers(13, serving.runner.vocab_size, 16).tolist())
            serving.engine.submit(GenerationRequest(f"r{stream}", 0, ids, params))
        started: set[str] = set()
        while len(started) < work.streams:
            started |= {event.request_id for event in serving.engine.step(time.monotonic())}
        ready.send(rank)
        while not go.is_set():
            serving.runner.wait(0.005)
        while serving.engine.has_work:
            serving.engine.step(time.monotonic())
        ready.send(rank)
        # Others go on beside a rank that is idle, not beside one that has left.
        while go.is_set():
            serving.runner.wait(0.005)
        serving.runner.dispatcher.close()


def connected(rank: int, work: Work, executor: ThreadPoolExecutor) -> Serving:
    """Return an engine over the shard process, once it is reached."""
    config, checkpoint = config_for(Path(work.path)), Checkpoint.open(work.path)
    arithmetic = Arithmetic.settle(config, checkpoint)
    arithmetic.kernels.set_threads(1)
    model = arithmetic.config
    shard = ShardInfo(ShardId(0), work.address, INCARNATION)
    version = PlacementVersion(1, 1)
    placement = Placement.sliced(version, (shard,), model.num_moe_layers, model.num_experts)

    def connect(shard: ShardInfo, deadline: Deadline) -> Session:
        hello = Hello(arithmetic.fingerprint, rank, INCARNATION, 1, "")
        return open_session(transport_for(shard.address), shard.address, hello, deadline)

    serving = serving_over(config, checkpoint, (ShardAccess(connect, executor), placement))
    deadline = Deadline.after(START_S)
    while missing := serving.runner.dispatcher.missing():
        if deadline.expired():
            raise RuntimeError("; ".join(missing))
        serving.runner.wait(0.05)
    return serving


@contextmanager
def processes(work: Work, ranks: int) -> Iterator[tuple[Connection, list[Connection], Event]]:
    """Run a shard and ranks; yield their pipes and the event that lets ranks go and end."""
    spawn = multiprocessing.get_context("spawn")
    go = spawn.Event()
    asking, asked = spawn.Pipe()
    started = [spawn.Process(target=run_shard, args=(work.path, work.address, asked), daemon=True)]
    started[0].start()
    told: list[Connection] = []
    try:
        received(asking, START_S)
        for rank in range(ranks):
            ours, theirs = spawn.Pipe()
            arguments = (rank, work, theirs, go)
            started.append(spawn.Process(target=run_rank, args=arguments, daemon=True))
            started[-1].start()
            told.append(ours)
        for pipe in told:
            received(pipe, START_S)
        yield asking, told, go
        go.clear()
        for process in started[1:]:
            process.join(10.0)
        asking.send(None)
        started[0].join(10.0)
    finally:
        for process in started:
            process.kill()
            process.join()


def received(pipe: Connection, timeout_s: float) -> Counted:
    """Return the next answer. Raises `TimeoutError`."""
    if not pipe.poll(timeout_s):
        raise TimeoutError(f"no answer within {timeout_s:g} s")
    answer: Counted = pipe.recv()
    return answer


def count(work: Work, ranks: int) -> tuple[Counted, float]:
    """Return what the shard did while every rank decoded, and the seconds it took."""
    with processes(work, ranks) as (asking, told, go):
        asking.send("count")
        before = received(asking, START_S)
        begun_s = time.monotonic()
        go.set()
        # Until the first is done: from then on fewer could share.
        done = multiprocessing.connection.wait(told, RUN_S)
        if not done:
            raise TimeoutError(f"no rank is done within {RUN_S:g} s")
        asking.send("count")
        counted = received(asking, START_S) - before
        took_s = time.monotonic() - begun_s
        for pipe in told:
            received(pipe, RUN_S)
        return counted, took_s


def figures(counted: Counted, took_s: float, model: AfmoeConfig) -> Iterator[Figure]:
    """Yield what the counts say per token. Of a token every layer computes K rows."""
    expert_bytes = StepBytes.of(model).expert_bytes
    tokens = counted.rows / (model.num_moe_layers * model.num_experts_per_tok)
    per_token = expert_bytes / tokens / 1e6
    yield Figure("expert_mb_per_token", counted.experts_read * per_token, "MB")
    yield Figure("expert_mb_per_token_unshared", counted.experts_called * per_token, "MB")
    yield Figure("calls_per_product", counted.calls / counted.products, "calls")
    yield Figure("decode_all_ranks", tokens / took_s, "tokens/s")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="small", choices=sorted(PRESETS))
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept between runs")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--streams", type=int, default=16, help="per rank")
    parser.add_argument("--tokens", type=int, default=128, help="per stream")
    options = parser.parse_args(arguments)
    machine = Machine.here()
    with (
        checkpoints([options.model], options.folder) as [path],
        tempfile.TemporaryDirectory(prefix="a-") as folder,
    ):
        model = Checkpoint.open(str(path)).config
        for ranks in options.ranks:
            address = f"unix:{folder}/{ranks}"
            work = Work(str(path), address, options.streams, options.tokens)
            counted, took_s = count(work, ranks)
            for figure in figures(counted, took_s, model):
                labelled = replace(figure, labels={"ranks": ranks, "streams": options.streams})
                report(machine, labelled, model=options.model)


if __name__ == "__main__":
    main()
