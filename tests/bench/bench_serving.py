"""Decode, prefill, start and memory over HTTP, with the load that other servers were measured by.

    python -m tests.bench.bench_serving --models tiny small --modes inline local

Prompts of 64 random tokens, 64 tokens out, greedy, end-of-text ignored; the median of three runs.
Prefill is one prompt to its first token. One JSON line per figure.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
from pathlib import Path

import numpy as np

from tests.bench.report import Machine, report
from tests.support.load import run_load
from tests.support.server import RunningServer, trinity_server
from trinity_serve.synthetic import PRESETS, write_checkpoint

STREAMS = (1, 4, 16, 32, 64)
PREFILLS = (1000, 8000, 32_000)
TOKENS = 64
RUNS = 3


def random_prompts(count: int, length: int, seed: int) -> list[list[int]]:
    """Return prompts that no earlier run has put into the prefix cache."""
    rng = np.random.default_rng(seed)
    return [rng.integers(13, 4096, length).tolist() for _ in range(count)]


class PeakPss:
    """The largest PSS seen while the block runs."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes = 0

    def _watch(self) -> None:
        while not self._done.wait(1.0):
            self.peak_bytes = max(self.peak_bytes, self._server.pss_bytes())

    def __enter__(self) -> PeakPss:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.peak_bytes = max(self.peak_bytes, self._server.pss_bytes())


def bench_server(machine: Machine, server: RunningServer, model: str, mode: str) -> None:
    """Report every figure of one server."""
    what = {"model": model, "mode": mode}
    run_load(server.url, model, random_prompts(1, 64, 0), 4)
    for streams in STREAMS:
        rates, first_s = [], []
        for run in range(RUNS):
            prompts = random_prompts(streams, 64, 1000 * streams + run)
            result = run_load(server.url, model, prompts, TOKENS)
            rates.append(result.decode_tokens_per_s)
            first_s.append(statistics.median(s.first_token_s for s in result.streams))
        rate = statistics.median(rates)
        report(machine, "decode", rate, "tokens/s", **what, streams=streams)
        report(machine, "first_token", statistics.median(first_s), "s", **what, streams=streams)
    for length in PREFILLS:
        times_s = []
        for run in range(RUNS if length <= 8000 else 1):
            prompts = random_prompts(1, length, 77 * length + run)
            times_s.append(run_load(server.url, model, prompts, 1, 600).streams[0].first_token_s)
        time_s = statistics.median(times_s)
        report(machine, "prefill", length / time_s, "tokens/s", **what, tokens=length)
        report(machine, "prefill_first_token", time_s, "s", **what, tokens=length)


def bench_model(machine: Machine, path: Path, mode: str) -> None:
    """Start the server of one checkpoint and mode, and report."""
    args = ["--model", str(path), "--mode", mode, "--max-model-len", "33000"]
    args += ["--kv-memory", "1GiB"]
    with trinity_server(args) as server:
        report(machine, "start_to_ready", server.start_s, "s", model=path.name, mode=mode)
        with PeakPss(server) as memory:
            bench_server(machine, server, path.name, mode)
        peak_gb = memory.peak_bytes / 1e9
        report(machine, "peak_pss", peak_gb, "GB", model=path.name, mode=mode)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["tiny", "small"], choices=sorted(PRESETS))
    parser.add_argument("--modes", nargs="+", default=["inline", "local"])
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept between runs")
    options = parser.parse_args()
    machine = Machine.here()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for model in options.models:
            if not (folder / model).exists():
                write_checkpoint(model, folder / model)
            for mode in options.modes:
                bench_model(machine, folder / model, mode)


if __name__ == "__main__":
    main()
