"""Inter-token gaps of running streams while a long prompt is prefilled, and without one.

`attention.max_mixed_step_s` states the bound; `gap_over_bound` is the share of steps beyond it.

Engine and kernels in this process, no HTTP: python -m tests.bench.bench_prefill_mix CHECKPOINT
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tests.bench.report import Machine
from tests.support.serving import Serving, open_serving
from trinity_serve.config import parse_serve_args
from trinity_serve.engine.request import GenerationRequest, SamplingParams


def main() -> None:
    """Print one JSON line for a run without the prompt and one with it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--prompt", type=int, default=32_000, help="tokens")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--chunk", type=int, default=512, help="attention.max_prefill_chunk")
    parser.add_argument("--bound", type=float, default=0.25, help="attention.max_mixed_step_s")
    options = parser.parse_args()
    machine = asdict(Machine.here())
    for length in (0, options.prompt):
        serving = open_serving(
            parse_serve_args(
                {
                    "mode": "inline",
                    "model": {"path": str(options.checkpoint)},
                    "attention": {
                        "kv_memory_bytes": "1GiB",
                        "max_num_seqs": options.streams + 1,
                        "max_prefill_chunk": options.chunk,
                        "max_mixed_step_s": options.bound,
                    },
                }
            )
        )
        gaps_ms = measure(serving, options.streams, length)
        p50, p99 = np.percentile(gaps_ms, [50, 99])
        figures = {
            "prompt": length,
            "streams": options.streams,
            "chunk": options.chunk,
            "bound_ms": options.bound * 1e3,
            "steps": len(gaps_ms),
            "gap_p50_ms": round(float(p50), 2),
            "gap_p99_ms": round(float(p99), 2),
            "gap_max_ms": round(max(gaps_ms), 2),
            "gap_over_bound": round(float(np.mean(np.array(gaps_ms) > options.bound * 1e3)), 4),
            "gap_first_tenth_ms": round(float(np.median(gaps_ms[: len(gaps_ms) // 10])), 2),
            "gap_last_tenth_ms": round(float(np.median(gaps_ms[-len(gaps_ms) // 10 :])), 2),
        }
        print(json.dumps({"bench": "prefill_mix", **figures, "machine": machine}), flush=True)


def measure(serving: Serving, streams: int, length: int) -> list[float]:
    """Return the steps' times in ms while the prompt is prefilled, or of 100 steps without it."""
    engine, rng = serving.engine, np.random.default_rng(0)
    endless = SamplingParams(max_tokens=20_000, seed=0, temperature=0.0, ignore_eos=True)
    for number in range(streams):
        ids = tuple(rng.integers(13, serving.runner.vocab_size, 64).tolist())
        engine.submit(GenerationRequest(f"stream-{number}", 0, ids, endless))
    for _ in range(10):
        engine.step(time.monotonic())
    if length:
        ids = tuple(rng.integers(13, serving.runner.vocab_size, length).tolist())
        first = SamplingParams(max_tokens=1, seed=0, temperature=0.0, ignore_eos=True)
        engine.submit(GenerationRequest("prompt", 0, ids, first))
    gaps_ms: list[float] = []
    done = False
    while not done:
        began_s = time.perf_counter()
        events = engine.step(time.monotonic())
        gaps_ms.append((time.perf_counter() - began_s) * 1e3)
        done = any(e.request_id == "prompt" for e in events) or (not length and len(gaps_ms) == 100)
    return gaps_ms


if __name__ == "__main__":
    main()
