"""Decode, prefill, start and memory over HTTP, and the share of the memory's limit that is reached.

    python -m tests.bench.bench_serving --models tiny small --modes inline local

One JSON line per figure. `decode_share` is decode over the rate at which reading weights would be
all that takes time, with the bandwidth measured in the same run (`ceiling.py`).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.ceiling import StepBytes, measure_read_bytes_per_s
from tests.bench.report import Figure, Machine, report
from tests.bench.serving_load import Plan, decode, first_answer_s, measure_endpoint
from tests.support.server import trinity_server
from trinity_serve.synthetic import PRESETS, write_checkpoint

SHARDS = {"inline": 1, "local": 4}


@dataclass(frozen=True)
class Contender:
    """What is served, and how."""

    checkpoint: Path
    mode: str
    options: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """Arguments of `trinity serve`, with room for the longest prompt."""
        model = ["--model", str(self.checkpoint), "--mode", self.mode]
        shards = ["--shards", str(SHARDS[self.mode])]
        return [*model, *shards, "--max-model-len", "33000", "--kv-memory", "1GiB", *self.options]


def speed(contender: Contender, plan: Plan) -> Iterator[Figure]:
    """Yield start, decode and prefill."""
    model = contender.checkpoint.name
    with trinity_server(contender.arguments) as server:
        yield Figure("start_to_ready", server.start_s, "s")
        first_s = first_answer_s(server.url, model, plan)
        yield Figure("start_to_first_token", first_s - server.begun_s, "s")
        yield from measure_endpoint(server.url, model, plan)


def memory(contender: Contender, plan: Plan) -> Iterator[Figure]:
    """Yield the peak of another start and of the largest number of streams."""
    model = contender.checkpoint.name
    with trinity_server(contender.arguments, watches_memory=True) as server:
        decode(server.url, model, max(plan.streams), plan, run=0)
    assert server.memory is not None
    yield Figure("peak_pss", server.memory.peak_bytes / 1e9, "GB")


def shares(decodes: Sequence[Figure], step: StepBytes, read_bytes_per_s: float) -> Iterator[Figure]:
    """Yield the ceiling of each decode figure and the share of it."""
    for figure in decodes:
        ceiling = step.ceiling_tokens_per_s(int(figure.labels["streams"]), read_bytes_per_s)
        yield Figure("decode_ceiling", ceiling, "tokens/s", figure.labels)
        yield Figure("decode_share", figure.value / ceiling, "1", figure.labels)


def bench(machine: Machine, contender: Contender, plan: Plan) -> None:
    """Report every figure of one checkpoint in one mode."""
    what = {"model": contender.checkpoint.name, "mode": contender.mode}
    # Before and after: neighbours come and go, and the larger one is the machine's.
    before = measure_read_bytes_per_s(machine.cores)
    decodes = []
    for figure in speed(contender, plan):
        report(machine, figure, **what)
        decodes += [figure] if figure.bench == "decode" else []
    for figure in memory(contender, plan):
        report(machine, figure, **what)
    read_bytes_per_s = max(before, measure_read_bytes_per_s(machine.cores))
    report(machine, Figure("memory_read", read_bytes_per_s / 1e9, "GB/s"))
    step = StepBytes.of(PRESETS[contender.checkpoint.name])
    for figure in shares(decodes, step, read_bytes_per_s):
        report(machine, figure, **what)


@contextmanager
def checkpoints(names: Sequence[str], folder: Path | None) -> Iterator[list[Path]]:
    """Yield the folders of synthetic checkpoints, written where missing.

    Without `folder` they are deleted after the block.
    """
    with tempfile.TemporaryDirectory() as temporary:
        paths = [(folder or Path(temporary)) / name for name in names]
        for path in paths:
            if not path.exists():
                write_checkpoint(path.name, path)
        yield paths


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["tiny", "small"], choices=sorted(PRESETS))
    parser.add_argument("--modes", nargs="+", default=["inline", "local"], choices=sorted(SHARDS))
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept between runs")
    parser.add_argument("--streams", type=int, nargs="+", default=Plan.streams)
    parser.add_argument("--prefills", type=int, nargs="*", default=Plan.prefills)
    parser.add_argument("--runs", type=int, default=Plan.runs)
    options = parser.parse_args(arguments)
    plan = Plan(tuple(options.streams), tuple(options.prefills), runs=options.runs)
    machine = Machine.here()
    with checkpoints(options.models, options.folder) as paths:
        for path in paths:
            for mode in options.modes:
                bench(machine, Contender(path, mode), plan)


if __name__ == "__main__":
    main()
