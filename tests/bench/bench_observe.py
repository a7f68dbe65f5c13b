"""What counting costs a decode step, and what tracing costs a served decode.

    python -m tests.bench.bench_observe --model small --folder /tmp/models

Both in one run, in turn, so that what drifts falls out.

- `metrics_cost`: engine and shard in this process, without HTTP. Of a running batch's steps every
  other counts nothing: no answer of a shard, no counter, no time of a request, no snapshot after
  it. The rest are as served. The cost is the median over pairs of neighbours; the error, its own.
- `traces_cost`: `trinity serve --traces` inline over HTTP, to a receiver in a process of its own.
  Every other pass over the same prompts says by its traceparent that it is not to be traced.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cluster.histogram import Counts
from cluster.metrics import Metric, Metrics
from router.dispatcher import Dispatcher
from tests.bench.bench_serving import checkpoints
from tests.bench.report import Figure, Machine, report
from tests.bench.rest_cost import steady_rate
from tests.bench.serving_load import Plan, decode_prompts
from tests.support.load import completion_body, run_bodies
from tests.support.server import trinity_server
from tests.support.serving import open_serving
from trinity_serve.config import parse_serve_args
from trinity_serve.engine.engine import Engine
from trinity_serve.engine.request import EngineStats, GenerationRequest, SamplingParams
from trinity_serve.engine.step_watch import StepWatch, Watched, WatchedChunk
from trinity_serve.engine.thread import EngineThread
from trinity_serve.rank import open_sampler
from trinity_serve.synthetic import PRESETS

Float64 = npt.NDArray[np.float64]

PROMPT_TOKENS = 64
WARM_UP_STEPS = 20
KV_MEMORY = "1GiB"
STEPS = 400
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"
"""A caller's span (W3C Trace Context); its flags, to be added, say whether it is recorded."""


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


@dataclass
class Stage:
    """One engine whose every step counts or does not, by what is put in its place."""

    thread: EngineThread
    engine: Engine
    dispatcher: Dispatcher
    watch: StepWatch
    steps: int

    def step_s(self, *, counts: bool) -> float:
        """Return how long the next decode step takes."""
        metrics = self.watch.metrics if counts else QuietMetrics()
        self.dispatcher._metrics = self.dispatcher._sender.metrics = metrics
        self.engine._watch = self.watch if counts else QuietWatch(metrics)
        snapshot = partial(Engine.stats, self.engine) if counts else EngineStats
        self.engine.stats = snapshot  # type: ignore[method-assign]
        began_s = time.perf_counter()
        self.thread._turn()
        return time.perf_counter() - began_s


def open_stage(path: Path, streams: int, steps: int) -> Stage:
    """Load, submit the streams, and go on until all of them decode."""
    args = parse_serve_args(_args(path, streams))
    serving = open_serving(args)
    watch = StepWatch(Metrics())
    engine = Engine(serving.runner, serving.engine.config, open_sampler(args), watch=watch)
    thread = EngineThread(engine, lambda events: None)
    rng = np.random.default_rng(0)
    for number in range(streams):
        ids = tuple(rng.integers(13, serving.runner.vocab_size, PROMPT_TOKENS).tolist())
        tokens = WARM_UP_STEPS + steps + PROMPT_TOKENS
        params = SamplingParams(max_tokens=tokens, seed=number, ignore_eos=True)
        thread.submit(GenerationRequest(f"r{number}", 0, ids, params))
    for _ in range(WARM_UP_STEPS):
        thread._turn()
    return Stage(thread, engine, serving.runner.dispatcher, watch, steps)


def _args(path: Path, streams: int) -> dict[str, object]:
    return {
        "mode": "inline",
        "model": {"path": str(path)},
        "experts": {"num_shards": 4},
        "attention": {"kv_memory_bytes": KV_MEMORY, "max_num_seqs": streams},
    }


def metrics_cost(path: Path, streams: int, steps: int) -> Iterator[Figure]:
    """Yield the rates of steps that count and of those between them that do not."""
    stage = open_stage(path, streams, steps)
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(steps // 4):
        # A B B A: what drifts from step to step falls on both alike.
        for counts in (False, True, True, False):
            times[counts].append(stage.step_s(counts=counts))
    off_N, on_N = (streams / np.array(times[counts]) for counts in (False, True))
    yield from _compared("metrics", off_N, on_N)


def traces_cost(path: Path, streams: int, plan: Plan, rounds: int) -> Iterator[Figure]:
    """Yield both rates and the cost of tracing every request."""
    with span_sink() as sink, served(path, sink) as url:
        # The same prompts each time: which experts rows go to decides what a step costs.
        bodies = [
            completion_body(path.name, prompt, plan.output_tokens)
            for prompt in decode_prompts(streams, plan, 0)
        ]
        rates: dict[bool, list[float]] = {False: [], True: []}
        run_bodies(url, bodies)
        for _ in range(rounds):
            for traced in (False, True, True, False):
                flags = "01" if traced else "00"
                load = run_bodies(url, bodies, headers={"traceparent": CALLER + flags})
                rates[traced].append(steady_rate(load.streams))
    yield from _compared("traces", *(np.array(rates[traced]) for traced in (False, True)))


@contextmanager
def served(path: Path, sink: str) -> Iterator[str]:
    """Serve inline with traces."""
    arguments = ["--model", str(path), "--mode", "inline", "--kv-memory", KV_MEMORY]
    with trinity_server([*arguments, "--traces", sink]) as server:
        yield server.url


def _compared(name: str, off_N: Float64, on_N: Float64) -> Iterator[Figure]:
    """Compare rates in pairs: each lies next to the other in time, so that drift falls out."""
    costs = 1.0 - on_N / off_N
    yield Figure(f"{name}_off", float(np.median(off_N)), "tokens/s")
    yield Figure(f"{name}_on", float(np.median(on_N)), "tokens/s")
    yield Figure(f"{name}_cost", float(np.median(costs)), "ratio")
    # The standard error of a median, of costs that are spread normally.
    yield Figure(f"{name}_cost_error", 1.25 * float(costs.std()) / len(costs) ** 0.5, "ratio")


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
    parser.add_argument("--steps", type=int, default=STEPS, help="of the engine alone")
    parser.add_argument("--rounds", type=int, default=4, help="of four passes, two of them traced")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--only", choices=["metrics", "traces"])
    options = parser.parse_args(arguments)
    plan = Plan(output_tokens=options.tokens)
    streams, rounds = options.streams, options.rounds
    with ExitStack() as stack:
        [path] = stack.enter_context(checkpoints([options.model], options.folder))
        machine = Machine.here()
        parts: dict[str, Callable[[], Iterator[Figure]]] = {
            "metrics": lambda: metrics_cost(path, streams, options.steps),
            "traces": lambda: traces_cost(path, streams, plan, rounds),
        }
        for name, part in parts.items():
            if options.only in (None, name):
                for figure in part():
                    report(machine, figure, model=options.model, streams=streams, rounds=rounds)


if __name__ == "__main__":
    main()
