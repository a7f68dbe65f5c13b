"""Ours beside its peers under one load, in turn, on one machine: rates and ratios.

    python -m tests.bench.bench_peers --model small
    python -m tests.bench.bench_peers --model small --url llama.cpp=http://127.0.0.1:8080

`transformers` runs in this process (`generate` without a server) unless --no-transformers is given;
any other peer is a URL that serves `/v1/completions` with token-id prompts. Peers are measured
after ours, and ours once more at the end, so that a drifting machine shows.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

import torch

from tests.bench.bench_serving import TOKENS, random_prompts
from tests.bench.report import Machine, report
from tests.support.load import run_load
from tests.support.server import trinity_server
from trinity_serve.synthetic import PRESETS, write_checkpoint

STREAMS = (1, 16, 64)
RUNS = 3
Rate = Callable[[int, int], float]
"""(streams, seed) -> decoded tokens per second over all streams."""


class Generates(Protocol):
    """`generate` as it is used here; its own annotations are not usable."""

    def generate(
        self, ids: torch.Tensor, *, max_new_tokens: int, min_new_tokens: int, do_sample: bool
    ) -> torch.Tensor: ...


def over_http(url: str, model: str) -> Rate:
    """Measure a server."""
    return lambda streams, seed: (
        run_load(url, model, random_prompts(streams, 64, seed), TOKENS).decode_tokens_per_s
    )


def in_process(folder: Path) -> Rate:
    """Measure transformers' `generate`; the first token's time is taken off by a second run."""
    from transformers import AfmoeForCausalLM  # noqa: PLC0415 - 2 s, and only when it is asked for

    model = cast(Generates, AfmoeForCausalLM.from_pretrained(str(folder), dtype=torch.bfloat16))

    def seconds(ids: torch.Tensor, tokens: int) -> float:
        begun_s = time.perf_counter()
        model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        return time.perf_counter() - begun_s

    def rate(streams: int, seed: int) -> float:
        ids = torch.tensor(random_prompts(streams, 64, seed))
        return streams * (TOKENS - 1) / (seconds(ids, TOKENS) - seconds(ids, 1))

    return rate


def measure(rate: Rate, seed: int) -> dict[int, float]:
    """Return the median rate by number of streams."""
    rate(1, seed)
    return {
        streams: statistics.median(rate(streams, seed + 1000 * streams + r) for r in range(RUNS))
        for streams in STREAMS
    }


def ours(folder: Path, mode: str, seed: int) -> dict[int, float]:
    """Measure our server, started for this and ended after."""
    args = ["--model", str(folder), "--mode", mode, "--max-model-len", "4096"]
    with trinity_server(args) as server:
        return measure(over_http(server.url, folder.name), seed)


def main() -> None:
    """Parse the command line, measure in turn, print figures and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="small", choices=sorted(PRESETS))
    parser.add_argument("--mode", default="inline", choices=["inline", "local"])
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept between runs")
    parser.add_argument("--url", action="append", default=[], metavar="NAME=URL")
    parser.add_argument("--no-transformers", action="store_true")
    options = parser.parse_args()
    machine = Machine.here()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)) / options.model
        if not folder.exists():
            write_checkpoint(options.model, folder)
        rates = {"trinity-serve": ours(folder, options.mode, 1)}
        for peer in options.url:
            name, _, url = peer.partition("=")
            rates[name] = measure(over_http(url, options.model), 2)
        if not options.no_transformers:
            rates["transformers"] = measure(in_process(folder), 3)
        rates["trinity-serve again"] = ours(folder, options.mode, 4)
    for name, by_streams in rates.items():
        for streams, rate in by_streams.items():
            what = {"server": name, "model": options.model, "mode": options.mode}
            report(machine, "peers", rate, "tokens/s", **what, streams=streams)
    for name, by_streams in rates.items():
        ratios = "  ".join(f"{rates['trinity-serve'][s] / by_streams[s]:6.2f}x" for s in STREAMS)
        sys.stderr.write(f"{name:>22}: ours / it at {STREAMS} streams: {ratios}\n")


if __name__ == "__main__":
    main()
