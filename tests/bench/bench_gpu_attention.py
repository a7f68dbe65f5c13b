"""Paged decode attention at a long context, in GB/s of KV read, beside the GPU's own copy rate.

    python -m tests.bench.bench_gpu_attention [--model large] [--context 131072] [--streams 1 4]

Without a GPU nothing is measured: it checks itself in Triton's interpreter, says so, and ends well.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import cast

import numpy as np
import torch

from tests.bench.gpu_clock import best_seconds, copy_rate
from tests.bench.report import Figure, Machine, report
from tests.support.kernels import Sequences, assert_near, random
from trinity_serve.model.batch import KV_BLOCK_SIZE, ForwardBatch, KvView
from trinity_serve.model.kernels import load_model_kernels
from trinity_serve.model.kernels.base import AttentionShape, ModelKernels
from trinity_serve.model.kernels.reference import ReferenceModelKernels
from trinity_serve.synthetic import PRESETS

CHECK_TIMEOUT_S = 300.0


def shape_of(model: str) -> AttentionShape:
    """Return what attention needs of a preset."""
    config = PRESETS[model]
    heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    return AttentionShape(*heads, config.rms_norm_eps)


def check(kernels: ModelKernels) -> None:
    """Decode a few rows and compare them with the reference's."""
    shape = AttentionShape(6, 2, 32, 1e-5)
    outputs = []
    for backend in (kernels, ReferenceModelKernels()):
        sequences = Sequences(backend, shape, torch.bfloat16, [70, 9])
        sequences.write({0: (0, 69), 1: (0, 8)})
        rows = sequences.step({0: (69, 70), 1: (8, 9)})
        outputs.append(torch.cat([rows[0], rows[1]]).cpu())
    assert_near(outputs[0], outputs[1])


def attention_rate(
    kernels: ModelKernels, shape: AttentionShape, context: int, streams: int, repeats: int
) -> float:
    """Return KV bytes per second of one decode step of `streams` sequences, one global layer."""
    columns = -(-context // KV_BLOCK_SIZE)
    cache = kernels.new_kv_cache(1, columns * streams, shape, torch.bfloat16)
    order = np.random.RandomState(0).permutation(columns * streams).astype(np.int32)
    tables = order.reshape(streams, columns)
    positions = np.full(streams, context - 1, np.int64)
    slots = tables[:, -1].astype(np.int64) * KV_BLOCK_SIZE + positions % KV_BLOCK_SIZE
    view = KvView(tables, slots)
    starts = np.arange(streams + 1, dtype=np.int32)
    batch = ForwardBatch(positions, positions, starts, view, view, np.arange(streams))
    qkvg = random(streams, shape.qkvg_width, dtype=torch.bfloat16).to(kernels.device)
    q = qkvg[:, : shape.num_heads * shape.head_dim].contiguous()

    def step() -> None:
        kernels.paged_attention(q, qkvg, shape, batch, view, cache, 0, None)

    kv_bytes = streams * context * 2 * shape.num_kv_heads * shape.head_dim * 2
    return kv_bytes / best_seconds(step, repeats)


def check_interpreted() -> int:
    """Check in a process of its own: Triton decides at its import whether it interprets."""
    command = [sys.executable, "-m", "tests.bench.bench_gpu_attention", "--check-only"]
    interpreted = {**os.environ, "TRITON_INTERPRET": "1"}
    return subprocess.run(command, env=interpreted, check=False, timeout=CHECK_TIMEOUT_S).returncode


def main(arguments: list[str] | None = None) -> int:
    """Measure; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="large", choices=sorted(PRESETS))
    parser.add_argument("--context", type=int, default=131_072)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--check-only", action="store_true")
    options = parser.parse_args(arguments)
    if not options.check_only and not torch.cuda.is_available():
        status = check_interpreted()
        verdict = "are the reference's" if status == 0 else "are WRONG"
        print(f"no CUDA device: nothing was measured; interpreted, the numbers {verdict}")
        return status
    kernels = load_model_kernels("cuda")
    check(kernels)
    if options.check_only:
        return 0
    machine, gpu = Machine.here(), torch.cuda.get_device_name()
    copied = copy_rate(options.repeats)
    report(machine, Figure("gpu copy", copied / 1e9, "GB/s"), gpu=gpu)
    for streams in options.streams:
        sizes = options.context, cast("int", streams), options.repeats
        rate = attention_rate(kernels, shape_of(options.model), *sizes)
        labels = {"streams": streams, "context": options.context}
        report(machine, Figure("paged decode", rate / 1e9, "GB/s", labels), gpu=gpu)
        share = Figure("paged decode of copy", rate / copied, "share", labels)
        report(machine, share, gpu=gpu)
    return 0


if __name__ == "__main__":
    sys.exit(main())
