"""The processes below one of ours, and how to be sure that they are gone. Linux only (`/proc`)."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Process:
    """One life of a process id: the id and when it was started, in clock ticks since boot."""

    pid: int
    started: int


def descendants(pid: int) -> list[Process]:
    """Return every living process below `pid`."""
    parents: dict[int, list[Process]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (found := _read(int(entry.name))) is not None:
            parent, process = found
            parents.setdefault(parent, []).append(process)
    below: list[Process] = []
    pending = [pid]
    while pending:
        children = parents.get(pending.pop(), [])
        below += children
        pending += [child.pid for child in children]
    return below


def end_processes(processes: list[Process], timeout_s: float) -> None:
    """Wait until these have ended by themselves; kill those that have not at the deadline."""
    deadline_s = time.monotonic() + timeout_s
    while (alive := [each for each in processes if is_alive(each)]) and (
        time.monotonic() < deadline_s
    ):
        time.sleep(POLL_S)
    for process in alive:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def is_alive(process: Process) -> bool:
    """Return whether this very process still runs (a zombie does not)."""
    found = _read(process.pid)
    return found is not None and found[1] == process


def _read(pid: int) -> tuple[int, Process] | None:
    """Return (parent's id, process), or None when it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command's name, in parentheses, may hold anything; fields count from behind it.
    state, parent, *fields = text.rpartition(")")[2].split()
    return None if state == "Z" else (int(parent), Process(pid, int(fields[17])))
