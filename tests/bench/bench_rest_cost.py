"""What Ray Serve and HTTP cost: the same decode by the engine alone and through `--mode local`.

   python -m tests.bench.bench_rest_cost --model small

Both have one rank over four shard processes on Unix sockets. The load generator shares the cores
with the server, so its own processor time is taken off the time of the run (`rest_cost`); with it
left in, the figure is `rest_cost_with_load`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cluster.placement import Placement, ShardInfo
from cluster.types import PlacementVersion, ShardId
from experts.checkpoint import Checkpoint
from tests.bench.report import Figure, Machine, report
from tests.bench.serving_load import Plan, decode
from tests.support.load import LoadResult, StreamResult, random_prompts
from tests.support.server import trinity_server
from tests.support.shards import ShardProcess
from trinity_serve.config import ServeConfig, parse_serve_args
from trinity_serve.engine.engine import Engine
from trinity_serve.engine.request import GenerationRequest, SamplingParams
from trinity_serve.parts.rank import open_rank
from trinity_serve.synthetic import PRESETS, write_checkpoint
from trinity_serve.threads import num_cores, shard_threads

NUM_SHARDS = 4
KV_MEMORY = "1GiB"
READY_TIMEOUT_S = 20.0


def config_of(checkpoint: Path) -> ServeConfig:
    """Return what `trinity serve --mode local` would run with."""
    return parse_serve_args(
        {
            "mode": "local",
            "model": {"path": str(checkpoint)},
            "experts": {"num_shards": NUM_SHARDS},
            "attention": {"kv_memory_bytes": KV_MEMORY},
        }
    )


@contextmanager
def engine_alone(config: ServeConfig) -> Iterator[Engine]:
    """Load a rank in this process over shard processes, as Ray would place them."""
    model = Checkpoint.open(config.model.path).config
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:

        def start(index: int) -> ShardProcess:
            listen = f"unix:{folder}/{index}/socket"
            part = ("--shard", f"{index}/{NUM_SHARDS}", "--listen", listen)
            threads = ("--threads", str(shard_threads(config, num_cores())))
            life = ("--die-with-parent", str(os.getpid()))
            arguments = ("--model", config.model.path, *part, *threads, *life)
            return ShardProcess.start(*arguments, errors_to=Path(folder, f"{index}.log"))

        # The threads that start shards outlive them: `--die-with-parent` means the thread.
        starting = stack.enter_context(ThreadPoolExecutor(NUM_SHARDS))
        shards = [stack.enter_context(s) for s in starting.map(start, range(NUM_SHARDS))]
        infos = tuple(
            ShardInfo(ShardId(index), shard.addresses["unix"], shard.incarnation)
            for index, shard in enumerate(shards)
        )
        version = PlacementVersion(1, 1)
        opened = open_rank(config, 0)
        sliced = Placement.sliced(version, infos, model.num_moe_layers, model.num_experts)
        opened.publish(sliced, "")
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while opened.missing():
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"shards are not reached: {opened.missing()}")
            opened.engine.runner.wait(0.05)
        yield opened.engine


def decode_alone(engine: Engine, streams: int, plan: Plan, run: int) -> LoadResult:
    """Run the same decode load by stepping the engine."""
    prompts = random_prompts(streams, plan.prompt_tokens, 9000 + run, plan.vocab_size)
    params = SamplingParams(plan.output_tokens, seed=0, temperature=0.0, ignore_eos=True)
    begun_s = time.monotonic()
    results = {f"{run}.{number}": StreamResult(begun_s) for number in range(streams)}
    for request_id, prompt in zip(results, prompts, strict=True):
        engine.submit(GenerationRequest(request_id, 0, tuple(prompt), params))
    while engine.has_work:
        for event in engine.step(time.monotonic()):
            if event.token_id is not None:
                results[event.request_id].token_times_s.append(time.monotonic())
    return LoadResult(tuple(results.values()), time.monotonic() - begun_s, 0.0)


def rate(results: Sequence[LoadResult], *, without_load: bool) -> float:
    """Return the median decode rate; `without_load` as if the generator had used no core."""
    cores = num_cores()

    def one(result: LoadResult) -> float:
        free = 1.0 - result.cpu_s / result.wall_s / cores if without_load else 1.0
        return result.decode_tokens_per_s / free

    return statistics.median(map(one, results))


def bench(machine: Machine, checkpoint: Path, streams: int, plan: Plan) -> None:
    """Report both rates and what lies between them."""
    what: dict[str, str | int] = {"model": checkpoint.name, "streams": streams}
    arguments = ["--model", str(checkpoint), "--mode", "local", "--shards", str(NUM_SHARDS)]
    alone, served = [], []
    with (
        engine_alone(config_of(checkpoint)) as engine,
        trinity_server([*arguments, "--kv-memory", KV_MEMORY]) as server,
    ):
        # In turn, so that a machine that drifts does so under both; the first round warms up.
        for run in range(-1, plan.runs):
            alone.append(decode_alone(engine, streams, plan, run))
            served.append(decode(server.url, checkpoint.name, streams, plan, run))
    del alone[0], served[0]
    engine_rate = rate(alone, without_load=False)
    report(machine, Figure("decode_engine_alone", engine_rate, "tokens/s"), **what)
    load_cpu = statistics.median(result.cpu_s / result.wall_s for result in served)
    report(machine, Figure("load_cpu", load_cpu, "cores"), **what)
    for name, without_load in (("rest_cost", True), ("rest_cost_with_load", False)):
        served_rate = rate(served, without_load=without_load)
        report(machine, Figure(f"decode_of_{name}", served_rate, "tokens/s"), **what)
        report(machine, Figure(name, 1.0 - served_rate / engine_rate, "1"), **what)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="small", choices=sorted(PRESETS))
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept between runs")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args(arguments)
    plan = Plan(runs=options.runs, output_tokens=options.tokens)
    with tempfile.TemporaryDirectory() as temporary:
        path = (options.folder or Path(temporary)) / options.model
        if not path.exists():
            write_checkpoint(options.model, path)
        bench(Machine.here(), path, options.streams, plan)


if __name__ == "__main__":
    main()
