"""Kernels as a share of what the machine can do, measured in the same run.

    python -m tests.bench.bench_kernels [--threads 1 2] [--repeats 20]

One JSON line per result, with commit and hardware. Weights are rotated so that each call reads
them from memory; every figure is the best of many. Limits are measured before and after the ops,
and the larger one counts: a share above 1 says that the neighbours were busier then.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from experts.kernels.base import ExpertKernels, LinearWeight
from experts.kernels.cpu.kernels import CpuExpertKernels
from tests.support.kernels import Sequences, filled_table, groups, random_experts
from trinity_serve.model.kernels.base import AttentionShape, ModelKernels
from trinity_serve.model.kernels.cpu.kernels import CpuModelKernels

HIDDEN = 3072
WEIGHT_BYTES = 512 << 20
READ_BYTES = 512 << 20
"""Both many times the last-level cache: what stays there between rounds would flatter a share."""
LINEAR_ROWS = (1, 2, 4, 8, 16, 64, 256)


@dataclass(frozen=True)
class Limits:
    """What one thread count reaches at most."""

    read_gb_per_s: float
    peak_gflop_per_s: dict[torch.dtype, float]


@dataclass(frozen=True)
class Timing:
    """One op in one shape, as measured."""

    op: str
    dtype: torch.dtype
    rows: int
    seconds: float
    bytes_read: int
    flops: int
    torch_s: float | None = None
    """torch's `linear` on the same operands."""


@dataclass(frozen=True)
class Result:
    """One op in one shape, as shares of the limits measured in the same run."""

    op: str
    dtype: str
    rows: int
    threads: int
    seconds: float
    gb_per_s: float
    share_of_read: float
    gflop_per_s: float
    share_of_peak: float
    torch_ratio: float | None
    """How many times faster than torch."""

    @classmethod
    def of(cls, timing: Timing, limits: Limits, threads: int) -> Result:
        """Divide by the limits."""
        gb_per_s = timing.bytes_read / timing.seconds / 1e9
        gflop_per_s = timing.flops / timing.seconds / 1e9
        ratio = None if timing.torch_s is None else round(timing.torch_s / timing.seconds, 2)
        return cls(
            op=timing.op,
            dtype=str(timing.dtype).removeprefix("torch."),
            rows=timing.rows,
            threads=threads,
            seconds=timing.seconds,
            gb_per_s=round(gb_per_s, 2),
            share_of_read=round(gb_per_s / limits.read_gb_per_s, 3),
            gflop_per_s=round(gflop_per_s, 1),
            share_of_peak=round(gflop_per_s / limits.peak_gflop_per_s[timing.dtype], 3),
            torch_ratio=ratio,
        )


def best_s(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls, after one to warm up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_limits(kernels: CpuExpertKernels, repeats: int) -> Limits:
    """Read memory, and multiply and add, with nothing else to do."""
    c = kernels.library.c
    read_s = c.ts_read_seconds(READ_BYTES, repeats)
    peaks = {}
    for dtype, code in ((torch.bfloat16, 1), (torch.float32, 0)):
        flops = c.ts_peak_flops(50, code)
        peaks[dtype] = flops / best_s(partial(c.ts_peak_flops, 50, code), repeats) / 1e9
    return Limits(READ_BYTES / read_s / 1e9, peaks)


def larger(one: Limits, other: Limits) -> Limits:
    """Each limit's larger value."""
    peaks = {k: max(v, other.peak_gflop_per_s[k]) for k, v in one.peak_gflop_per_s.items()}
    return Limits(max(one.read_gb_per_s, other.read_gb_per_s), peaks)


@dataclass(frozen=True)
class Bench:
    """The ops of one thread count."""

    kernels: ExpertKernels
    model: ModelKernels
    repeats: int

    def linear(self, dtype: torch.dtype, width: int, hidden: int) -> Iterator[Timing]:
        """A projection of `hidden` to `width`."""
        elements = width * hidden
        count = WEIGHT_BYTES // (elements * dtype.itemsize)
        weights = [torch.randn(width, hidden).to(dtype) for _ in range(count)]
        packed = [self.kernels.pack_linear(weight) for weight in weights]
        for rows in LINEAR_ROWS:
            x = torch.randn(rows, hidden).to(dtype)
            ours, torchs = self._linear_s(x, packed), self._torch_s(x, weights)
            work = elements * dtype.itemsize, 2 * rows * elements
            yield Timing(f"linear {width}x{hidden}", dtype, rows, ours, *work, torchs)

    def _linear_s(self, x: Tensor, packed: list[LinearWeight]) -> float:
        turn = cycle(packed)
        return best_s(lambda: self.kernels.linear(x, next(turn)), self.repeats)

    def _torch_s(self, x: Tensor, weights: list[Tensor]) -> float:
        turn = cycle(weights)
        return best_s(lambda: F.linear(x, next(turn)), self.repeats)

    def grouped_swiglu(self, hidden: int, width: int, num_experts: int) -> Iterator[Timing]:
        """One layer's experts, each hit by one or several rows."""
        experts = random_experts(num_experts, hidden, width, torch.bfloat16)
        table = filled_table(self.kernels, experts)
        elements = 3 * hidden * width
        name = f"grouped_swiglu {num_experts}x3x{hidden}x{width}"
        for rows_each in (1, 4, 16):
            x = torch.randn(rows_each, hidden).to(torch.bfloat16)
            sizes, ids = [rows_each] * num_experts, list(range(num_experts))
            call = partial(
                self.kernels.grouped_swiglu, x, *groups(sizes, ids, rows_each), table=table
            )
            rows = rows_each * num_experts
            work = num_experts * elements * 2, 2 * rows * elements
            yield Timing(name, torch.bfloat16, rows, best_s(call, self.repeats), *work)

    def attention(self, context: int) -> Iterator[Timing]:
        """Decode one row at the end of a long context, and prefill a chunk there."""
        shape = AttentionShape(16, 4, 64, 1e-5)
        sequences = Sequences(self.model, shape, torch.bfloat16, [context])
        # Memory never written is one page of zeros: it would be read from the cache.
        for begin in range(0, context, 8192):
            sequences.write({0: (begin, min(begin + 8192, context))})
        for rows in (1, 64):
            seconds = best_s(partial(sequences.step, {0: (context - rows, context)}), self.repeats)
            kv_bytes = context * 2 * shape.num_kv_heads * shape.head_dim * 2
            flops = rows * context * 4 * shape.num_heads * shape.head_dim
            name = f"attention 16/4x64 at {context}"
            yield Timing(name, torch.bfloat16, rows, seconds, kv_bytes, flops)

    def all(self) -> Iterator[Timing]:
        """Every op."""
        yield from self.linear(torch.bfloat16, HIDDEN, HIDDEN)
        yield from self.linear(torch.bfloat16, 2560, 1024)
        yield from self.linear(torch.bfloat16, 1024, 1024)
        yield from self.linear(torch.float32, HIDDEN, HIDDEN)
        yield from self.grouped_swiglu(hidden=1024, width=128, num_experts=256)
        yield from self.grouped_swiglu(hidden=HIDDEN, width=HIDDEN, num_experts=4)
        yield from self.attention(context=131_072)


def measure(threads: int, repeats: int) -> tuple[Limits, list[Result]]:
    """Run every bench with this many threads, torch's too."""
    kernels, model = CpuExpertKernels(), CpuModelKernels()
    before = kernels.library.num_threads, torch.get_num_threads()
    kernels.set_threads(threads)
    torch.set_num_threads(threads)
    try:
        limits = measure_limits(kernels, repeats)
        timings = list(Bench(kernels, model, repeats).all())
        limits = larger(limits, measure_limits(kernels, repeats))
        return limits, [Result.of(timing, limits, threads) for timing in timings]
    finally:
        kernels.set_threads(before[0])
        torch.set_num_threads(before[1])


def provenance() -> dict[str, str]:
    """Commit and hardware."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text("utf-8").splitlines() if "model name" in line]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    isa = CpuExpertKernels().library.isa.name
    return {"commit": commit.stdout.strip() or "unknown", "cpu": cpu, "isa": isa}


def main() -> None:
    """Print one JSON line per limit and result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    source = provenance()
    for threads in arguments.threads:
        limits, results = measure(threads, arguments.repeats)
        peaks = {str(k).removeprefix("torch."): v for k, v in limits.peak_gflop_per_s.items()}
        line = {"op": "limits", "threads": threads, "read_gb_per_s": limits.read_gb_per_s}
        print(json.dumps({"bench": "kernels", **line, "peak_gflop_per_s": peaks, **source}))
        for result in results:
            print(json.dumps({"bench": "kernels", **asdict(result), **source}))


if __name__ == "__main__":
    main()
