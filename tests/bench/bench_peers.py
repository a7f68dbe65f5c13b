"""Ours beside its peers under one load, in turn, on one machine: figures and ratios.

    python -m tests.bench.bench_peers --model small
    python -m tests.bench.bench_peers --command 'llama.cpp=llama-server -m small.gguf --port {port}'
    python -m tests.bench.bench_peers --url vllm=http://127.0.0.1:8000

`transformers` runs in a process of its own (`generate` without a server) unless --no-transformers
is given. Other peers answer `/v1/completions` with token-id prompts: a command is started, waited
for (`GET /health`) and ended, a URL is taken as it is. Ours is measured first and last: a machine
that drifts shows. Ratios are ours over theirs for rates and theirs over ours for times, with the
mean of both of our measurements; above 1 ours is faster.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from tests.bench.bench_serving import SHARDS, Contender, checkpoints
from tests.bench.report import Figure, Machine, report
from tests.bench.serving_load import Plan, first_answer_s, measure_endpoint, served_model
from tests.support.server import ServerCommand, running, trinity_server
from trinity_serve.synthetic import PRESETS

OURS = "trinity-serve"
PEER_START_S = 600.0
Measure = Callable[[Plan], list[Figure]]


def measure_url(url: str, plan: Plan) -> list[Figure]:
    """Measure a server that runs already."""
    model = served_model(url)
    first_answer_s(url, model, plan)
    return list(measure_endpoint(url, model, plan))


def measure_command(command: str, plan: Plan) -> list[Figure]:
    """Start a server for this, measure it, end it."""
    arguments = tuple(shlex.split(command))
    # After SIGINT other servers end in many ways; none of them is our business.
    codes = tuple(range(-64, 256))
    start = ServerCommand(arguments, start_timeout_s=PEER_START_S, exit_codes=codes)
    with running(start) as server:
        return measure_url(server.url, plan)


def measure_ours(contender: Contender, plan: Plan) -> list[Figure]:
    """Start ours for this, measure it, end it."""
    with trinity_server(contender.arguments) as server:
        return measure_url(server.url, plan)


def measure_transformers(checkpoint: Path, plan: Plan) -> list[Figure]:
    """Run `transformers_peer`."""
    options = {"--streams": plan.streams, "--prefills": plan.prefills, "--runs": (plan.runs,)}
    words = [word for name, values in options.items() for word in (name, *map(str, values))]
    module = [sys.executable, "-m", "tests.bench.transformers_peer", str(checkpoint)]
    output = subprocess.run([*module, *words], check=True, stdout=subprocess.PIPE, text=True)
    return [Figure(**json.loads(line)) for line in output.stdout.splitlines()]


def ratios(ours: Sequence[Figure], theirs: Sequence[Figure]) -> Iterator[Figure]:
    """Yield how many times faster ours is, for each figure that both have.

    `ours` may hold a figure several times: their mean counts.
    """
    values: dict[object, list[float]] = {}
    for figure in ours:
        values.setdefault(figure.key, []).append(figure.value)
    for figure in theirs:
        if figure.key in values and figure.bench in ("decode", "first_token", "prefill"):
            mean = sum(values[figure.key]) / len(values[figure.key])
            ratio = figure.value / mean if figure.unit == "s" else mean / figure.value
            yield Figure(f"{figure.bench}_ratio", ratio, "1", figure.labels)


def table(by_peer: Mapping[str, Sequence[Figure]]) -> str:
    """Return ratios as text, a line per figure and a column per peer."""
    rows: dict[str, list[str]] = {}
    for figures in by_peer.values():
        for figure in figures:
            labels = " ".join(f"{name}={value}" for name, value in figure.labels.items())
            rows.setdefault(f"{figure.bench} {labels}", []).append(f"{figure.value:.2f}")
    head = f"{'':40}" + "".join(f"{name:>16}" for name in by_peer)
    lines = [f"{name:40}" + "".join(f"{cell:>16}" for cell in row) for name, row in rows.items()]
    return "\n".join([head, *lines]) + "\n"


def named(text: str) -> tuple[str, str]:
    """Parse NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="small", choices=sorted(PRESETS))
    parser.add_argument("--mode", default="inline", choices=sorted(SHARDS))
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept between runs")
    parser.add_argument("--url", type=named, action="append", default=[], metavar="NAME=URL")
    parser.add_argument("--command", type=named, action="append", default=[], metavar="NAME=WORDS")
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--prefills", type=int, nargs="*", default=[1000, 8000])
    parser.add_argument("--runs", type=int, default=Plan.runs)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all in turn; print figures, ratios and a table."""
    options = parse(arguments)
    machine = Machine.here()
    with checkpoints([options.model], options.folder) as [checkpoint]:
        contender = Contender(checkpoint, options.mode)
        ours: Measure = partial(measure_ours, contender)
        turns: list[tuple[str, Measure]] = [(OURS, ours)]
        turns += [(name, partial(measure_url, url)) for name, url in options.url]
        turns += [(name, partial(measure_command, words)) for name, words in options.command]
        if not options.no_transformers:
            turns.append(("transformers", partial(measure_transformers, checkpoint)))
        turns.append((OURS, ours))
        figures: dict[str, list[Figure]] = {}
        for turn, (name, measure) in enumerate(turns):
            streams, prefills = tuple(options.streams), tuple(options.prefills)
            plan = Plan(streams, prefills, runs=options.runs, seed=10_000_000 * turn)
            found = measure(plan)
            for figure in found:
                report(machine, figure, server=name, model=options.model, mode=options.mode)
            figures.setdefault(name, []).extend(found)
    by_peer = {
        name: list(ratios(figures[OURS], found)) for name, found in figures.items() if name != OURS
    }
    for name, found in by_peer.items():
        for figure in found:
            report(machine, figure, server=name, model=options.model, mode=options.mode)
    sys.stderr.write(table(by_peer))


if __name__ == "__main__":
    main()
