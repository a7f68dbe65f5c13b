"""An attention rank over shard processes, without Ray and HTTP, driven from inside by lines.

   python -m tests.bench.engine_alone CHECKPOINT --shards 4 --kv-memory 1GiB --tokens 64

Prints `ready`. Each line of its input is a JSON list of prompts, lists of ids: all are generated
from at once, and one line tells when each one's tokens came: lists of seconds, monotonic clock.

All is as in `trinity serve --mode local`: the same `open_rank`, the same engine on a thread of its
own, shards in processes of their own with as many threads, Unix sockets between them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cluster.deadline import Deadline
from cluster.placement import Placement, ShardInfo
from cluster.types import PlacementVersion, ShardId
from experts.checkpoint import Checkpoint
from tests.support.shards import ShardProcess
from trinity_serve.config import ServeConfig, parse_serve_args
from trinity_serve.engine.request import GenerationRequest, SamplingParams, TokenEvent
from trinity_serve.engine.thread import EngineThread
from trinity_serve.opened_rank import OpenedRank
from trinity_serve.parts.rank import open_rank
from trinity_serve.threads import num_cores, shard_threads

READY_TIMEOUT_S = 30.0
RUN_TIMEOUT_S = 300.0


@contextmanager
def opened(config: ServeConfig) -> Iterator[OpenedRank]:
    """Load a rank in this process over shard processes; it knows the placement."""
    count = config.experts.num_shards
    model = Checkpoint.open(config.model.path).config
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:

        def start(index: int) -> ShardProcess:
            listen = f"unix:{folder}/{index}/socket"
            part = ("--shard", f"{index}/{count}", "--listen", listen)
            threads = ("--threads", str(shard_threads(config, num_cores())))
            life = ("--die-with-parent", str(os.getpid()))
            arguments = ("--model", config.model.path, *part, *threads, *life)
            return ShardProcess.start(*arguments, errors_to=Path(folder, f"{index}.log"))

        # The threads that start shards outlive them: `--die-with-parent` means the thread.
        starting = stack.enter_context(ThreadPoolExecutor(count))
        shards = [stack.enter_context(each) for each in starting.map(start, range(count))]
        infos = tuple(
            ShardInfo(ShardId(index), shard.addresses["unix"], shard.incarnation)
            for index, shard in enumerate(shards)
        )
        rank = open_rank(config, 0)
        version = PlacementVersion(1, 1)
        rank.publish(Placement.sliced(version, infos, model.num_moe_layers, model.num_experts), "")
        yield rank


class Driver:
    """Submits a load to an engine's thread and keeps when its tokens came."""

    def __init__(self, rank: OpenedRank, num_tokens: int) -> None:
        self._params = SamplingParams(num_tokens, seed=0, temperature=0.0, ignore_eos=True)
        self._num_open, self._ended = 0, threading.Event()
        self._times_s: dict[str, list[float]] = {}
        self._thread = EngineThread(rank.engine, self._deliver)
        self._thread.start()
        deadline = Deadline.after(READY_TIMEOUT_S)
        while missing := rank.missing():
            if deadline.expired():
                raise RuntimeError(f"shards are not reached: {missing}")
            time.sleep(0.05)

    def run(self, load: int, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Generate from all of them, submitted at the same moment as an HTTP load sends them."""
        self._times_s = {f"{load}.{number}": [] for number in range(len(prompts))}
        self._num_open = len(prompts)
        self._ended.clear()
        for request_id, prompt in zip(self._times_s, prompts, strict=True):
            self._thread.submit(GenerationRequest(request_id, 0, tuple(prompt), self._params))
        if not self._ended.wait(RUN_TIMEOUT_S):
            raise RuntimeError(f"{self._num_open} streams have not ended")
        return list(self._times_s.values())

    def stop(self) -> None:
        """End the engine's thread."""
        self._thread.stop(Deadline.after(5.0))

    def _deliver(self, events: list[TokenEvent]) -> None:
        now_s = time.monotonic()
        for event in events:
            if event.token_id is not None:
                self._times_s[event.request_id].append(now_s)
            self._num_open -= event.finish is not None
        if self._num_open == 0:
            self._ended.set()


def main(arguments: Sequence[str] | None = None) -> None:
    """Load, say so, and run one load for each line that comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--shards", type=int, required=True)
    parser.add_argument("--kv-memory", required=True)
    parser.add_argument("--tokens", type=int, required=True)
    options = parser.parse_args(arguments)
    config = parse_serve_args(
        {
            "mode": "local",
            "model": {"path": options.checkpoint},
            "experts": {"num_shards": options.shards},
            "attention": {"kv_memory_bytes": options.kv_memory},
        }
    )
    with opened(config) as rank:
        driver = Driver(rank, options.tokens)
        print("ready", flush=True)
        for load, line in enumerate(sys.stdin):
            print(json.dumps(driver.run(load, json.loads(line))), flush=True)
        driver.stop()


if __name__ == "__main__":
    main()
