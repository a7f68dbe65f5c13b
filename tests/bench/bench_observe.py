"""What counting costs a decode step, and what tracing costs a served decode.

    python -m tests.bench.bench_observe --model small --folder /tmp/models

Both by A B A B in one run, one of them at a time; a cost is the median over rounds of what B lacks
of A's rate, so that what drifts between rounds falls out.

- `metrics_cost`: engine and shard in this process, without HTTP. A counts nothing: no answer of a
  shard, no counter, no time of a request, no snapshot after a step. B is as served.
- `traces_cost`: `trinity serve` inline over HTTP, without traces (A) and with every request traced
  (B), to a receiver in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.histogram import Counts
from cluster.metrics import Metric, Metrics
from tests.bench.bench_serving import checkpoints
from tests.bench.report import Figure, Machine, report
from tests.bench.rest_cost import steady_rate
from tests.bench.serving_load import Plan, decode
from tests.support.server import trinity_server
from tests.support.serving import Serving, open_serving
from trinity_serve.config import parse_serve_args
from trinity_serve.engine.engine import Engine
from trinity_serve.engine.request import EngineStats, GenerationRequest, SamplingParams
from trinity_serve.engine.step_watch import StepWatch, Watched, WatchedChunk
from trinity_serve.engine.thread import EngineThread
from trinity_serve.rank import open_sampler
from trinity_serve.synthetic import PRESETS

PROMPT_TOKENS = 64
WARM_UP_STEPS = 20
KV_MEMORY = "1GiB"
MAX_STEPS = 200


class Quiet:
    """Stands for `DispatchTimes`: takes and keeps nothing."""

    def answered(self, *_: object) -> None: ...

    def waited(self, *_: object) -> None: ...


class QuietMetrics(Metrics):
    """Counts nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.times = Quiet()  # type: ignore[assignment]

    def inc(self, metric: Metric, amount: int = 1) -> None: ...


class QuietWatch(StepWatch):
    """Watches nothing."""

    def queued(self, seq: Watched) -> None: ...

    def planned(self, chunks: Sequence[WatchedChunk]) -> None: ...

    def computed(self, chunks: Sequence[WatchedChunk]) -> None: ...

    def first_token(self, seq: Watched) -> None: ...

    def ended(self, seq: Watched) -> None: ...

    def times(self) -> dict[str, Counts]:
        return {}


class QuietEngine(Engine):
    """Takes no snapshot."""

    def stats(self) -> EngineStats:
        return EngineStats()


@dataclass
class Stage:
    """One loaded rank and shard; engines over it count or do not."""

    serving: Serving
    path: Path
    streams: int

    def rate(self, steps: int, *, counts: bool) -> float:
        """Return tokens per second of so many decode steps."""
        metrics = Metrics() if counts else QuietMetrics()
        dispatcher = self.serving.runner.dispatcher
        dispatcher._metrics = dispatcher._sender.metrics = metrics
        watch = StepWatch(metrics) if counts else QuietWatch(metrics)
        sampler = open_sampler(parse_serve_args(_args(self.path, self.streams)))
        kind = Engine if counts else QuietEngine
        engine = kind(self.serving.runner, self.serving.engine.config, sampler, watch=watch)
        thread = EngineThread(engine, lambda events: None)
        self._submit(thread, WARM_UP_STEPS + steps + PROMPT_TOKENS)
        for _ in range(WARM_UP_STEPS):
            thread._turn()
        begun_s = time.perf_counter()
        for _ in range(steps):
            thread._turn()
        return steps * self.streams / (time.perf_counter() - begun_s)

    def _submit(self, thread: EngineThread, tokens: int) -> None:
        rng = np.random.default_rng(0)
        for number in range(self.streams):
            ids = rng.integers(13, self.serving.runner.vocab_size, PROMPT_TOKENS)
            params = SamplingParams(max_tokens=tokens, seed=number, ignore_eos=True)
            thread.submit(GenerationRequest(f"r{number}", 0, tuple(ids.tolist()), params))


def _args(path: Path, streams: int) -> dict[str, object]:
    return {
        "mode": "inline",
        "model": {"path": str(path)},
        "experts": {"num_shards": 4},
        "attention": {"kv_memory_bytes": KV_MEMORY, "max_num_seqs": streams},
    }


def metrics_cost(path: Path, streams: int, steps: int, rounds: int) -> Iterator[Figure]:
    """Yield both rates and the cost of counting."""
    stage = Stage(open_serving(parse_serve_args(_args(path, streams))), path, streams)
    stage.rate(WARM_UP_STEPS, counts=True)
    pairs = [
        (stage.rate(steps, counts=False), stage.rate(steps, counts=True)) for _ in range(rounds)
    ]
    yield from _compared("metrics", pairs)


def traces_cost(path: Path, streams: int, plan: Plan, rounds: int) -> Iterator[Figure]:
    """Yield both rates and the cost of tracing every request."""
    with span_sink() as url:
        pairs = []
        for number in range(rounds):
            arguments: list[tuple[str, ...]] = [(), ("--traces", url)]
            without, traced = (
                _served_rate(path, streams, plan, number, each) for each in arguments
            )
            pairs.append((without, traced))
    yield from _compared("traces", pairs)


def _served_rate(path: Path, streams: int, plan: Plan, number: int, more: tuple[str, ...]) -> float:
    arguments = ["--model", str(path), "--mode", "inline", "--kv-memory", KV_MEMORY, *more]
    with trinity_server(arguments) as server:
        first = number * (plan.runs + 1)
        results = [
            decode(server.url, path.name, streams, plan, first + run)
            for run in range(plan.runs + 1)
        ]
    return statistics.median(steady_rate(result.streams) for result in results[1:])


def _compared(name: str, pairs: Sequence[tuple[float, float]]) -> Iterator[Figure]:
    yield Figure(f"{name}_off", statistics.median(pair[0] for pair in pairs), "tokens/s")
    yield Figure(f"{name}_on", statistics.median(pair[1] for pair in pairs), "tokens/s")
    costs = sorted(1.0 - on / off for off, on in pairs)
    yield Figure(f"{name}_cost", statistics.median(costs), "ratio")
    yield Figure(f"{name}_cost_least", costs[0], "ratio")
    yield Figure(f"{name}_cost_most", costs[-1], "ratio")


@contextmanager
def span_sink() -> Iterator[str]:
    """Run a receiver of OTLP in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.span_sink"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="small", choices=sorted(PRESETS))
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept between runs")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--steps", type=int, default=MAX_STEPS, help="of the engine alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=3, help="of a server's start")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--only", choices=["metrics", "traces"])
    options = parser.parse_args(arguments)
    plan = Plan(runs=options.runs, output_tokens=options.tokens)
    streams, rounds = options.streams, options.rounds
    with ExitStack() as stack:
        [path] = stack.enter_context(checkpoints([options.model], options.folder))
        machine = Machine.here()
        parts: dict[str, Callable[[], Iterator[Figure]]] = {
            "metrics": lambda: metrics_cost(path, streams, options.steps, rounds),
            "traces": lambda: traces_cost(path, streams, plan, rounds),
        }
        for name, part in parts.items():
            if options.only in (None, name):
                for figure in part():
                    report(machine, figure, model=options.model, streams=streams, rounds=rounds)


if __name__ == "__main__":
    main()
