"""What a server's processes hold: to be the same again when a storm is over. Linux only."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from types import TracebackType

from trinity_serve.processes import descendants

MAX_GROWTH = 0.05
"""Of a sum, from the second quarter of a run (the first warms up) to the last."""


@dataclass(frozen=True)
class Footprint:
    """Sums over processes."""

    processes: int
    resident_bytes: int
    open_files: int
    threads: int

    @classmethod
    def of(cls, root_pid: int) -> Footprint:
        """Look at a process and all below it now; a process that ends meanwhile counts as gone."""
        return cls.of_processes([root_pid, *(each.pid for each in descendants(root_pid))])

    @classmethod
    def of_processes(cls, pids: Sequence[int]) -> Footprint:
        """Look at these alone."""
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


class FootprintWatch:
    """Looks at a process and all below it while the block runs; at nothing for process 0."""

    def __init__(self, root_pid: int, every_s: float = 1.0) -> None:
        self._root_pid, self._every_s = root_pid, every_s
        self._task: asyncio.Task[None] | None = None
        self.seen: list[Footprint] = []

    async def __aenter__(self) -> FootprintWatch:
        """Begin to look."""
        if self._root_pid:
            self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _watch(self) -> None:
        while True:
            self.seen.append(await asyncio.to_thread(Footprint.of, self._root_pid))
            await asyncio.sleep(self._every_s)

    def summary(self) -> str:
        """Return what was held at first and at last, in words."""
        early, late = quarters(self.seen)
        return ", ".join(f"{name} {early[name]} -> {late[name]}" for name in early)

    def growths(self) -> list[str]:
        """Return what has grown, one line each."""
        return growths(self.seen)


def quarters(seen: Sequence[Footprint]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the medians of the second quarter and of the last."""
    quarter = max(1, len(seen) // 4)
    return _medians(seen[quarter : 2 * quarter] or seen), _medians(seen[-quarter:])


def _medians(seen: Sequence[Footprint]) -> dict[str, int]:
    names = [field.name for field in fields(Footprint)]
    return {name: int(median([getattr(each, name) for each in seen] or [0])) for name in names}


def growths(seen: Sequence[Footprint]) -> list[str]:
    """Return which sums have grown by more than `MAX_GROWTH`, one line each."""
    early, late = quarters(seen)
    return [
        f"{name} grew from {early[name]} to {late[name]}"
        for name in early
        if late[name] > early[name] * (1 + MAX_GROWTH)
    ]
