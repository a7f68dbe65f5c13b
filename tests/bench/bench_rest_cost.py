"""What Ray Serve and HTTP cost: the same decode by the engine alone and through `--mode local`.

   python -m tests.bench.bench_rest_cost --model small --folder /tmp/models

Rounds of first one, then the other (A B A B ...), only one of them running at a time. Both have one
rank over shard processes on Unix sockets, opened by the same code with the same threads; Ray gives
a process of one CPU `OMP_NUM_THREADS=1`, so the engine alone gets that too (with torch's own choice
its threads spin on the cores that shards need, and the engine alone is slower than served). Each
run has fresh prompts, the same in both, all sent at once; the first run of each start warms up.

In mode local clients speak to the ingress's own port: Serve's proxy, the way in on a cluster, is
not measured here (DECISIONS.md has its processor time).

With `--keys` the server has API keys, and the generator's one is held to limits that it never
reaches: every check of a request is on.

The load generator's processor time is counted apart, as `load_cpu`. How it comes off is told in
`tests.bench.rest_cost`: `rest_cost_at_most` charges it to serving in full, `rest_cost_at_least` not
at all. `cpu_per_token` is the processor time of all processes of a kind but the generator: it
hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from tests.bench.report import Figure, Machine, report
from tests.bench.rest_cost import Round, Run, cost_of, steady_rate
from tests.bench.serving_load import Plan, decode, decode_prompts
from tests.support.load import StreamResult
from tests.support.server import tree_cpu_s, trinity_server
from trinity_serve.api.keys import hash_of, new_key
from trinity_serve.synthetic import PRESETS, write_checkpoint
from trinity_serve.threads import num_cores

NUM_SHARDS = 4
KV_MEMORY = "1GiB"
STOP_TIMEOUT_S = 20.0
NUM_KEYS = 20
KEY_LIMITS = {
    "requests_per_minute": 1_000_000,
    "tokens_per_minute": 1_000_000_000,
    "max_concurrent_streams": 10_000,
}

RunOnce = Callable[[int], Run]
"""Runs the load once with the prompts of this number."""


@contextmanager
def engine_alone(checkpoint: Path, streams: int, plan: Plan) -> Iterator[RunOnce]:
    """Run the engine in a process of its own while the block runs."""
    command = [sys.executable, "-m", "tests.bench.engine_alone", str(checkpoint)]
    sizes = ["--shards", str(NUM_SHARDS), "--kv-memory", KV_MEMORY]
    process = subprocess.Popen(
        [*command, *sizes, "--tokens", str(plan.output_tokens)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    questions, answers = process.stdin, process.stdout

    def run(number: int) -> Run:
        prompts = decode_prompts(streams, plan, number)
        cpu_before_s, begun_s = tree_cpu_s(process.pid), time.monotonic()
        questions.write(json.dumps(prompts) + "\n")
        questions.flush()
        results = [StreamResult(begun_s, times_s) for times_s in json.loads(answers.readline())]
        wall_s = time.monotonic() - begun_s
        return run_of(results, wall_s, tree_cpu_s(process.pid) - cpu_before_s)

    try:
        if answers.readline() != "ready\n":
            raise RuntimeError("the engine alone did not start; its errors are above")
        yield run
    finally:
        questions.close()
        try:
            process.wait(STOP_TIMEOUT_S)
        finally:
            process.kill()
            process.wait()
            answers.close()


@contextmanager
def served(checkpoint: Path, streams: int, plan: Plan) -> Iterator[RunOnce]:
    """Run the server, without keys, while the block runs."""
    with _served(checkpoint, streams, plan, key="") as run:
        yield run


@contextmanager
def served_with_keys(checkpoint: Path, streams: int, plan: Plan) -> Iterator[RunOnce]:
    """Run the server with several keys, all with limits, while the block runs."""
    keys = [new_key() for _ in range(NUM_KEYS)]
    records = [
        {"name": f"user-{number}", "sha256": hash_of(key), **KEY_LIMITS}
        for number, key in enumerate(keys)
    ]
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))
        file.flush()
        arguments = ("--api-keys-file", file.name)
        with _served(checkpoint, streams, plan, *arguments, key=keys[-1]) as run:
            yield run


@contextmanager
def _served(
    checkpoint: Path, streams: int, plan: Plan, *more_arguments: str, key: str
) -> Iterator[RunOnce]:
    arguments = ["--model", str(checkpoint), "--mode", "local", "--shards", str(NUM_SHARDS)]
    with trinity_server([*arguments, "--kv-memory", KV_MEMORY, *more_arguments]) as server:
        url = server.url.replace("://", f"://:{key}@") if key else server.url

        def run(number: int) -> Run:
            cpu_before_s = tree_cpu_s(server.process.pid)
            result = decode(url, checkpoint.name, streams, plan, number)
            cpu_s = tree_cpu_s(server.process.pid) - cpu_before_s
            return run_of(result.streams, result.wall_s, cpu_s, result.cpu_s)

        yield run


def run_of(
    streams: Sequence[StreamResult], wall_s: float, tree_cpu_s: float, load_cpu_s: float = 0.0
) -> Run:
    """Return what counts of a run."""
    tokens = sum(len(stream.token_times_s) for stream in streams)
    return Run(steady_rate(streams), wall_s, tokens, tree_cpu_s, load_cpu_s)


def measure(
    starts: Sequence[Callable[[], AbstractContextManager[RunOnce]]], rounds: int, runs_each: int
) -> list[Round]:
    """Return rounds of the engine alone and of the server, which `starts` start in this order."""
    measured: list[Round] = []
    for number in range(rounds):
        runs: list[list[Run]] = []
        for start in starts:
            with start() as run:
                first = number * (runs_each + 1)
                runs.append([run(first + each) for each in range(runs_each + 1)][1:])
        measured.append(Round(*runs))
    return measured


def figures(rounds: Sequence[Round], cores: int) -> Iterator[Figure]:
    """Yield medians of both kinds, and the cost."""
    for name in ("alone", "served"):
        runs: list[Run] = [run for each in rounds for run in getattr(each, name)]
        kind = {"engine": name}
        rate = statistics.median(run.tokens_per_s for run in runs)
        yield Figure("decode_steady", rate, "tokens/s", kind)
        cpu_s = statistics.median(run.cpu_per_token_s for run in runs)
        yield Figure("cpu_per_token", cpu_s, "s", kind)
        load = statistics.median(run.load_cpu_s / run.wall_s for run in runs)
        yield Figure("load_cpu", load, "cores", kind)
    cost = cost_of(rounds, cores)
    yield Figure("rest_cost_at_most", cost.at_most, "1")
    yield Figure("rest_cost_at_least", cost.at_least, "1")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="small", choices=sorted(PRESETS))
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept between runs")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3, help="of a round, for each kind")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--keys", action="store_true", help="serve with API keys and their limits")
    options = parser.parse_args(arguments)
    plan = Plan(runs=options.runs, output_tokens=options.tokens)
    with tempfile.TemporaryDirectory() as temporary:
        path = (options.folder or Path(temporary)) / options.model
        if not path.exists():
            write_checkpoint(options.model, path)
        machine = Machine.here()
        kinds = (engine_alone, served_with_keys if options.keys else served)
        starts = [partial(kind, path, options.streams, plan) for kind in kinds]
        measured = measure(starts, options.rounds, plan.runs)
    what = {"model": options.model, "streams": options.streams, "rounds": options.rounds}
    for figure in figures(measured, num_cores()):
        report(machine, figure, **what, keys="on" if options.keys else "off")


if __name__ == "__main__":
    main()
