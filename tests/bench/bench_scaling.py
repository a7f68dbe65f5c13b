"""What a token costs as context, streams and shards grow.

    python -m tests.bench.bench_scaling --folder models > scaling.jsonl
    python -m tests.bench.plot_scaling scaling.jsonl docs/scaling.png

Context: one stream whose prompt is that long, inline. Streams: prompts of 64 tokens, inline.
Shards: the same at 16 streams, `local`, where every shard is a process; on one machine more shards
divide the same cores, so that what grows is the price of sending rows to more places. A token's
cost is the time of a step over the streams in it. The model is `tiny` with room for long contexts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tests.bench.report import Figure, Label, Machine, report
from tests.bench.serving_load import Plan, decode, first_answer_s
from tests.support.load import random_prompts, run_load
from tests.support.server import trinity_server
from trinity_serve.synthetic import PRESETS, write_checkpoint

MODEL = "tiny-long"
MAX_CONTEXT = 262_144
OUTPUT_TOKENS = 32
PREFILL_DEADLINE_S = 1800.0


def options_of(path: Path, mode: str, shards: int, context: int) -> list[str]:
    """Return options of `trinity serve` with room for `context` tokens."""
    model = ["--model", str(path), "--mode", mode, "--shards", str(shards)]
    return [*model, "--max-model-len", str(context + 2 * OUTPUT_TOKENS), "--kv-memory", "1GiB"]


def by_context(path: Path, contexts: Sequence[int]) -> Iterator[Figure]:
    """Yield the cost of a token, and of the prompt, at each context."""
    with trinity_server(options_of(path, "inline", 1, max(contexts))) as server:
        first_answer_s(server.url, MODEL, Plan())
        for context in contexts:
            prompts = random_prompts(1, context, seed=context)
            load = run_load(server.url, MODEL, prompts, OUTPUT_TOKENS, PREFILL_DEADLINE_S)
            labels: dict[str, Label] = {"axis": "context", "context": context}
            yield Figure("token_cost", load.gap_s(0.5) * 1000, "ms", labels)
            yield Figure("prompt_token_cost", load.first_token_s / context * 1000, "ms", labels)


def by_streams(path: Path, streams: Sequence[int]) -> Iterator[Figure]:
    """Yield the cost of a token at each number of streams."""
    with trinity_server(options_of(path, "inline", 1, 1024)) as server:
        first_answer_s(server.url, MODEL, Plan())
        for count in streams:
            yield token_cost(server.url, count, {"axis": "streams", "streams": count})


def by_shards(path: Path, shards: Sequence[int], streams: int) -> Iterator[Figure]:
    """Yield the cost of a token at each number of shards."""
    for count in shards:
        with trinity_server(options_of(path, "local", count, 1024)) as server:
            first_answer_s(server.url, MODEL, Plan())
            labels: dict[str, Label] = {"axis": "shards", "shards": count, "streams": streams}
            yield token_cost(server.url, streams, labels)


def token_cost(url: str, streams: int, labels: dict[str, Label]) -> Figure:
    """Return the median of three runs."""
    rates = [decode(url, MODEL, streams, Plan(), run).decode_tokens_per_s for run in range(3)]
    return Figure("token_cost", 1000 / statistics.median(rates), "ms", labels)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where the checkpoint is kept between runs")
    contexts = [1024 << power for power in range(8)]
    parser.add_argument("--contexts", type=int, nargs="*", default=contexts)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--shards", type=int, nargs="*", default=[1, 2, 4, 8])
    options = parser.parse_args(arguments)
    machine = Machine.here()
    with tempfile.TemporaryDirectory() as temporary:
        path = (options.folder or Path(temporary)) / MODEL
        if not path.exists():
            config = replace(PRESETS["tiny"], max_position_embeddings=MAX_CONTEXT)
            write_checkpoint(config, path)
        if options.contexts:
            for figure in by_context(path, options.contexts):
                report(machine, figure, model=MODEL)
        if options.streams:
            for figure in by_streams(path, options.streams):
                report(machine, figure, model=MODEL)
        for figure in by_shards(path, options.shards, streams=16):
            report(machine, figure, model=MODEL)


if __name__ == "__main__":
    main()
