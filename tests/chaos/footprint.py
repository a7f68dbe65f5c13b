"""What a server's processes hold: to be the same again when a storm is over. Linux only."""

from __future__ import annotations

import asyncio
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trinity_serve.processes import descendants


@dataclass(frozen=True)
class Footprint:
    """Sums over a process and all below it."""

    processes: int
    resident_bytes: int
    open_files: int
    threads: int

    @classmethod
    def of(cls, root_pid: int) -> Footprint:
        """Look now; a process that ends meanwhile counts as gone."""
        pids = [root_pid, *(each.pid for each in descendants(root_pid))]
        found = [held for held in map(_held_by, pids) if held is not None]
        resident, files, threads = (sum(held[i] for held in found) for i in range(3))
        return cls(len(found), resident, files, threads)


def _held_by(pid: int) -> tuple[int, int, int] | None:
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        resident = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        threads = re.search(r"^Threads:\s+(\d+)", status, re.MULTILINE)
        files = len(os.listdir(f"/proc/{pid}/fd"))
        return (
            int(resident[1]) * 1024 if resident else 0,
            files,
            int(threads[1]) if threads else 0,
        )
    return None


async def files_return_to(baseline: Footprint, root_pid: int, within_s: float) -> float | None:
    """Return after how many seconds no more files are open than at `baseline`; None: not in time.

    Sockets of clients that are gone are files that stay open.
    """
    began_s = time.monotonic()
    while (waited_s := time.monotonic() - began_s) < within_s:
        if Footprint.of(root_pid).open_files <= baseline.open_files:
            return waited_s
        await asyncio.sleep(0.05)
    return None
