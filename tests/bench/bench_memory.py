"""Memory of an inline server's engine against what it must hold: weights and KV.

In this process, without HTTP: python -m tests.bench.bench_memory CHECKPOINT
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

from tests.bench.report import Machine
from tests.support.serving import open_serving
from trinity_serve.config import parse_serve_args
from trinity_serve.engine.request import SamplingParams


def main() -> None:
    """Load, answer one prompt and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--kv", type=int, default=512, help="MiB")
    options = parser.parse_args()
    attention = {"kv_memory_bytes": options.kv << 20}
    before_bytes = _status_bytes("VmRSS")
    began_s = time.monotonic()
    serving = open_serving(
        parse_serve_args(
            {"mode": "inline", "model": {"path": str(options.checkpoint)}, "attention": attention}
        )
    )
    loaded_s = time.monotonic() - began_s
    serving.run([list(range(20, 84))], SamplingParams(max_tokens=1, seed=0, ignore_eos=True))
    weights = sum(file.stat().st_size for file in options.checkpoint.glob("*.safetensors"))
    figures = {
        "weights_bytes": weights,
        "kv_limit_bytes": options.kv << 20,
        "imports_bytes": before_bytes,
        "peak_rss_bytes": _status_bytes("VmHWM"),
        "pss_bytes": _pss_bytes(),
        "peak_over_weights": round(_status_bytes("VmHWM") / weights, 3),
        "load_s": round(loaded_s, 2),
        "first_token_s": round(time.monotonic() - began_s, 2),
    }
    print(json.dumps({"bench": "memory", **figures, "machine": asdict(Machine.here())}))


def _status_bytes(key: str) -> int:
    return _field(Path("/proc/self/status"), key)


def _pss_bytes() -> int:
    return _field(Path("/proc/self/smaps_rollup"), "Pss")


def _field(path: Path, key: str) -> int:
    lines = (line.split() for line in path.read_text().splitlines())
    return next(int(parts[1]) << 10 for parts in lines if parts and parts[0] == f"{key}:")


if __name__ == "__main__":
    main()
