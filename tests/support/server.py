"""Start a server command, wait until it is ready, weigh it, end it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

READY = re.compile(r"Ready: (http://\S+)/v1")


@dataclass(frozen=True)
class RunningServer:
    """A `trinity serve` process that has said it is ready."""

    url: str
    process: subprocess.Popen[bytes]
    start_s: float
    """From the command to ready."""

    def pss_bytes(self) -> int:
        """Return the proportional set size of the process and all its descendants."""
        return sum(_pss(pid) for pid in descendants(self.process.pid))


@contextmanager
def trinity_server(
    args: Sequence[str], *, start_timeout_s: float = 180, stop_timeout_s: float = 30
) -> Iterator[RunningServer]:
    """Run `trinity serve ARGS --port 0`; end it with SIGINT and expect exit code 0."""
    command = [sys.executable, "-m", "trinity_serve.cli.main", "serve", *args, "--port", "0"]
    with tempfile.NamedTemporaryFile("w+b") as output:
        begun_s = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            url = _await_ready(process, Path(output.name), begun_s + start_timeout_s)
            yield RunningServer(url, process, time.monotonic() - begun_s)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            try:
                code = process.wait(stop_timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
        if code != 0:
            raise RuntimeError(f"trinity serve ended with {code}: {_tail(Path(output.name))}")


def _await_ready(process: subprocess.Popen[bytes], output: Path, until_s: float) -> str:
    while time.monotonic() < until_s:
        found = READY.search(output.read_text(errors="replace"))
        if found:
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise RuntimeError(f"trinity serve did not become ready: {_tail(output)}")


def _tail(output: Path) -> str:
    return output.read_text(errors="replace")[-2000:]


def descendants(pid: int) -> list[int]:
    """Return `pid` and every process below it that lives now."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, left = [], [pid]
    while left:
        found.append(left.pop())
        left += children.get(found[-1], [])
    return found


def _pss(pid: int) -> int:
    with suppress(OSError):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
        return int(found[1]) * 1024 if found else 0
    return 0
