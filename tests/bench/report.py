"""One JSON line per figure, with what it was measured on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

Label = str | int


@dataclass(frozen=True)
class Machine:
    """Where and when a figure was measured."""

    commit: str
    date: str
    cpu: str
    cores: int
    memory_gb: int
    load: float
    """One-minute load average when the bench began: above a few tenths, others were at work."""

    @classmethod
    def here(cls) -> Machine:
        """Look at this machine and commit."""
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        root = Path(__file__).resolve().parents[2]
        git = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        names = [
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls(
            git.stdout.strip() or "unknown",
            datetime.now(UTC).strftime("%Y-%m-%d"),
            names[0] if names else platform.machine(),
            len(os.sched_getaffinity(0)),
            round(memory / 2**30),
            round(os.getloadavg()[0], 2),
        )


@dataclass(frozen=True)
class Figure:
    """One number: what was measured (`bench` and labels such as streams), its value and unit."""

    bench: str
    value: float
    unit: str
    labels: Mapping[str, Label] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, tuple[tuple[str, Label], ...]]:
        """What two measurements of the same thing share."""
        return self.bench, tuple(sorted(self.labels.items()))


def report(machine: Machine, figure: Figure, **what: Label) -> None:
    """Print one figure; `what` tells of which model, server and mode."""
    line = {
        "bench": figure.bench,
        **what,
        **figure.labels,
        "value": float(f"{figure.value:.4g}"),
        "unit": figure.unit,
        **asdict(machine),
    }
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
