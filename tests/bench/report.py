"""One JSON line per figure, with what it was measured on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """Where a figure comes from."""

    commit: str
    cpu: str
    cores: int
    memory_gb: int
    load: float
    """One-minute load average when the bench began: above a few tenths, others were at work."""

    @classmethod
    def here(cls) -> Machine:
        """Look at this machine and commit."""
        git = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        )
        names = [
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(
            git.stdout.strip(),
            names[0] if names else platform.machine(),
            len(os.sched_getaffinity(0)),
            round(memory / 2**30),
            round(os.getloadavg()[0], 2),
        )


def report(machine: Machine, bench: str, value: float, unit: str, **what: str | int) -> None:
    """Print one figure."""
    line = {"bench": bench, **what, "value": round(value, 4), "unit": unit, **asdict(machine)}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
