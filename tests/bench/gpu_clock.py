"""Times by the GPU's own clock, and the copy rate that others are shares of."""

from __future__ import annotations

from collections.abc import Callable

import torch

COPY_BYTES = 2 << 30


def best_seconds(call: Callable[[], object], repeats: int) -> float:
    """Return the shortest of some runs, by the GPU's clock."""
    times: list[float] = []
    for _ in range(repeats + 2):
        start, end = (_event() for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return min(times[2:])


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def copy_rate(repeats: int) -> float:
    """Return bytes read and written per second by a copy on the device."""
    source = torch.ones(COPY_BYTES // 4, device="cuda")
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / best_seconds(lambda: target.copy_(source), repeats)
