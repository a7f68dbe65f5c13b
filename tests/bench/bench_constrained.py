"""What holding outputs to a grammar costs: free, JSON schema and regex streams in turn.

   python -m tests.bench.bench_constrained --model small --folder /tmp/models

Rounds of all kinds one after the other (A B C A B C ...) in one process, by the engine alone:
greedy, fresh prompts for every run, the same number of tokens of every stream.
`loss` is one minus the rate of a kind over that of free streams, medians over rounds; `cpu_loss` is
the same of processor time per token, which hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.metrics import Metrics
from experts.checkpoint import Checkpoint
from tests.bench.report import Figure, Machine, report
from tests.support.load import random_prompts
from trinity_serve.arithmetic import Arithmetic
from trinity_serve.config import parse_serve_args
from trinity_serve.engine.engine import Engine
from trinity_serve.engine.request import GenerationRequest, SamplingParams
from trinity_serve.inline import CallerExecutor, InprocShards
from trinity_serve.rank import ShardAccess, build_rank, open_grammars
from trinity_serve.synthetic import PRESETS, write_checkpoint

PROMPT_TOKENS = 64
FREE = "free"
_ITEM = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "count": {"type": "integer"}},
    "required": ["name", "count"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": _ITEM, "minItems": 1000}
REGEX = r"([A-Za-z]+ [0-9]+, ){1000,2000}"
GRAMMARS = {
    FREE: "",
    "json_schema": json.dumps({"grammars": [{"json_schema": SCHEMA}]}),
    "regex": json.dumps({"grammars": [{"lark_grammar": f"start: /{REGEX}/"}]}),
}
"""Each goes on for longer than any run."""


@dataclass(frozen=True)
class Run:
    """One load: all streams from the first step to the last token."""

    num_tokens: int
    wall_s: float
    cpu_s: float


def open_engine(checkpoint_path: Path, streams: int) -> Engine:
    """Load rank and shard into this process."""
    config = parse_serve_args(
        {
            "mode": "inline",
            "model": {"path": str(checkpoint_path)},
            "experts": {"num_shards": 1},
            "attention": {"kv_memory_bytes": "1GiB", "max_num_seqs": streams},
        }
    )
    checkpoint = Checkpoint.open(config.model.path)
    arithmetic = Arithmetic.settle(config, checkpoint)
    shards = InprocShards(config, checkpoint, arithmetic)
    access = ShardAccess(shards.connect, CallerExecutor())
    runner, sizes = build_rank(config, checkpoint, arithmetic, access, Metrics())
    runner.dispatcher.publish(shards.placement)
    return Engine(runner, sizes, grammars=open_grammars(checkpoint))


def run(engine: Engine, name: str, prompts: Sequence[Sequence[int]], num_tokens: int) -> Run:
    """Generate from all prompts at once."""
    params = SamplingParams(
        num_tokens, seed=0, temperature=0.0, ignore_eos=name == FREE, grammar=GRAMMARS[name]
    )
    for number, prompt in enumerate(prompts):
        engine.submit(GenerationRequest(f"{name}.{number}", 0, tuple(prompt), params))
    made, begun_s, cpu_begun_s = 0, time.monotonic(), time.process_time()
    while engine.has_work:
        for event in engine.step(time.monotonic()):
            if event.error is not None:
                raise event.error
            made += event.token_id is not None
    if made != num_tokens * len(prompts):
        raise RuntimeError(f"{name}: {made} tokens came, not {num_tokens} of each stream")
    return Run(made, time.monotonic() - begun_s, time.process_time() - cpu_begun_s)


def measure(engine: Engine, streams: int, rounds: int, num_tokens: int) -> dict[str, list[Run]]:
    """Return the runs of each kind; the first round only warms up."""
    runs: dict[str, list[Run]] = {name: [] for name in GRAMMARS}
    for number in range(rounds + 1):
        for position, name in enumerate(GRAMMARS):
            seed = 1 + number * len(GRAMMARS) + position
            prompts = random_prompts(streams, PROMPT_TOKENS, seed, engine.runner.vocab_size)
            runs[name].append(run(engine, name, prompts, num_tokens))
    return {name: each[1:] for name, each in runs.items()}


def figures(runs: dict[str, list[Run]]) -> Iterator[Figure]:
    """Yield each kind's rates, and what it loses against free streams."""
    rates = {
        n: statistics.median(r.num_tokens / r.wall_s for r in each) for n, each in runs.items()
    }
    cpu_s = {n: statistics.median(r.cpu_s / r.num_tokens for r in each) for n, each in runs.items()}
    for name in runs:
        labels = {"output": name}
        yield Figure("constrained", rates[name], "tokens/s", labels)
        yield Figure("constrained_cpu_per_token", cpu_s[name], "s", labels)
        if name != FREE:
            yield Figure("constrained_loss", 1.0 - rates[name] / rates[FREE], "1", labels)
            yield Figure("constrained_cpu_loss", 1.0 - cpu_s[FREE] / cpu_s[name], "1", labels)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="small", choices=sorted(PRESETS))
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept between runs")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args(arguments)
    machine = Machine.here()
    with tempfile.TemporaryDirectory() as temporary:
        path = (options.folder or Path(temporary)) / options.model
        if not path.exists():
            write_checkpoint(options.model, path)
        engine = open_engine(path, options.streams)
        try:
            runs = measure(engine, options.streams, options.rounds, options.tokens)
        finally:
            engine.close()
    what: dict[str, str | int] = {"model": options.model, "streams": options.streams}
    for figure in figures(runs):
        report(machine, figure, **what)


if __name__ == "__main__":
    main()
