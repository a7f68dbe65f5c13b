"""What this machine's own memory and arithmetic give, for `trinity plan --measure`.

A GPU is measured when torch sees one, else the CPUs. Links and latencies need a second device and
stay as the table has them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from trinity_serve.planning.figures import MACHINES, DeviceFigures


@dataclass(frozen=True, slots=True)
class Probe:
    """How much is copied and multiplied, and how often; the fastest time counts."""

    copy_bytes: int = 2**29
    matrix_rows: int = 4096
    repeats: int = 5


def measure_here(probe: Probe | None = None) -> DeviceFigures:
    """Measure the first GPU, or this host's CPUs. Blocks for some seconds."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        base = MACHINES["H200-141"]
        name, memory_bytes = properties.name, float(properties.total_memory)
        device, probe = torch.device("cuda", 0), probe or Probe(copy_bytes=2**32, matrix_rows=8192)
    else:
        base, name = MACHINES["CPU"], "CPU"
        memory_bytes = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        device, probe = torch.device("cpu"), probe or Probe(matrix_rows=2048)
    flops = matmul_flops(device, probe)
    return replace(
        base,
        name=name,
        memory_bytes=memory_bytes,
        memory_bytes_per_s=copy_bytes_per_s(device, probe),
        bf16_flops=flops,
        # Not measured apart: whoever multiplies in FP8 knows his kernels' rate.
        fp8_flops=flops,
    )


def copy_bytes_per_s(device: torch.device, probe: Probe) -> float:
    """Return bytes read plus bytes written per second of a large copy."""
    source = torch.zeros(probe.copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _fastest_s(lambda: target.copy_(source), device, probe.repeats)
    return 2 * probe.copy_bytes / seconds


def matmul_flops(device: torch.device, probe: Probe) -> float:
    """Return operations per second of a square bf16 product."""
    rows = probe.matrix_rows
    left = torch.ones(rows, rows, dtype=torch.bfloat16, device=device)
    seconds = _fastest_s(lambda: left @ left, device, probe.repeats)
    return 2.0 * rows**3 / seconds


def _fastest_s(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    times_s = []
    for _ in range(repeats + 1):  # the first one finds its memory and its kernel
        begun_s = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times_s.append(time.perf_counter() - begun_s)
    return min(times_s[1:])
