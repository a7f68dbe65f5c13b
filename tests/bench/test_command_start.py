"""Seconds from typing a command to its answer, next to what importing torch would cost."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.bench

RUNS = 7
IN_HELP = "from trinity_serve.cli.main import main; raise SystemExit(main(['--help']))"


def median_s(script: str) -> float:
    """Return the median wall time of a fresh interpreter that runs `script`, after one warm-up."""
    times = []
    for _ in range(RUNS + 1):
        start = time.monotonic()
        subprocess.run([sys.executable, "-c", script], check=True, timeout=60, capture_output=True)
        times.append(time.monotonic() - start)
    return statistics.median(times[1:])


def test_help_is_there_long_before_torch_would_be() -> None:
    help_s, torch_s = median_s(IN_HELP), median_s("import torch")
    print(f"trinity --help {help_s:.3f} s, import torch {torch_s:.3f} s (median of {RUNS})")
    assert help_s < 0.5
    assert help_s < torch_s / 2
