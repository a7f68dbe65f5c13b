"""Start a server command, wait until it is ready, weigh it, end it and all it started."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from trinity_serve.processes import descendants, end_processes

PRINTED_ENDPOINT = re.compile(r"Ready: (https?://\S+)/v1")
POLL_S = 0.02


@dataclass(frozen=True)
class ServerCommand:
    """How to start a server, and how it says that it is ready."""

    arguments: Sequence[str]
    """`{port}` in an argument becomes a free port; without it the server prints its endpoint."""
    ready_path: str = "/health"
    start_timeout_s: float = 180.0
    stop_timeout_s: float = 30.0
    exit_codes: tuple[int, ...] = (0,)
    """Allowed after SIGINT."""
    watches_memory: bool = False
    """From its start on."""

    def with_port(self, port: int) -> list[str]:
        """Return the arguments with the port filled in."""
        return [argument.replace("{port}", str(port)) for argument in self.arguments]

    @property
    def takes_port(self) -> bool:
        """Whether it is told its port."""
        return any("{port}" in argument for argument in self.arguments)


class PeakPss:
    """The largest PSS of a process and all below it, seen while the block runs.

    Reading it walks a process's pages, so that it is not watched while speed is measured.
    """

    def __init__(self, pid: int, every_s: float = 0.25) -> None:
        self._pid, self._every_s = pid, every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peak_bytes = 0

    def _watch(self) -> None:
        while not self._done.wait(self._every_s):
            self.peak_bytes = max(self.peak_bytes, tree_pss_bytes(self._pid))

    def __enter__(self) -> PeakPss:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.peak_bytes = max(self.peak_bytes, tree_pss_bytes(self._pid))


@dataclass(frozen=True)
class RunningServer:
    """A server that has said it is ready."""

    url: str
    process: subprocess.Popen[bytes]
    begun_s: float
    """When its command was started, on the monotonic clock."""
    ready_s: float
    """When it was ready."""
    memory: PeakPss | None = None
    """Since its start, when its command watches it."""

    @property
    def start_s(self) -> float:
        """From the command to ready."""
        return self.ready_s - self.begun_s


@contextmanager
def running(command: ServerCommand) -> Iterator[RunningServer]:
    """Run a server while the block runs; end it with SIGINT.

    Raises RuntimeError with the end of its output when it does not become ready in time, does not
    end in time, or ends with another exit code than it should. Nothing it started is left.
    """
    port = _free_port() if command.takes_port else 0
    with tempfile.NamedTemporaryFile("w+b", suffix=".log") as output:
        begun_s = time.monotonic()
        process = subprocess.Popen(command.with_port(port), stdout=output, stderr=subprocess.STDOUT)
        log = Path(output.name)
        try:
            with PeakPss(process.pid) if command.watches_memory else nullcontext() as memory:
                url = _await_ready(process, command, port, log)
                yield RunningServer(url, process, begun_s, time.monotonic(), memory)
        finally:
            code = _end(process, command.stop_timeout_s)
        if code not in command.exit_codes:
            raise RuntimeError(f"{command.arguments[:4]} ended with {code}: {_tail(log)}")


@contextmanager
def trinity_server(
    args: Sequence[str],
    *,
    start_timeout_s: float = 180,
    stop_timeout_s: float = 30,
    watches_memory: bool = False,
) -> Iterator[RunningServer]:
    """Run `trinity serve ARGS` on a free port; it must end with exit code 0."""
    serve = (sys.executable, "-m", "trinity_serve.cli.main", "serve", *args, "--port", "0")
    times = (start_timeout_s, stop_timeout_s)
    command = ServerCommand(serve, "/ready", *times, watches_memory=watches_memory)
    with running(command) as server:
        yield server


def _await_ready(
    process: subprocess.Popen[bytes], command: ServerCommand, port: int, log: Path
) -> str:
    until_s = time.monotonic() + command.start_timeout_s
    while time.monotonic() < until_s and process.poll() is None:
        printed = PRINTED_ENDPOINT.search(log.read_text(errors="replace"))
        url = f"http://127.0.0.1:{port}" if port else printed[1] if printed else ""
        if url and _answers(url + command.ready_path):
            return url
        time.sleep(POLL_S)
    how = f"within {command.start_timeout_s:g} s" if process.poll() is None else "before it ended"
    raise RuntimeError(f"{command.arguments[:4]} did not become ready {how}: {_tail(log)}")


def _answers(url: str) -> bool:
    # Whose server it is, is known; its certificate may be of a test's own CA.
    context = ssl._create_unverified_context() if url.startswith("https") else None
    with (
        suppress(urllib.error.URLError, OSError),
        urllib.request.urlopen(url, timeout=5, context=context) as answer,
    ):
        return int(answer.status) == 200
    return False


def _end(process: subprocess.Popen[bytes], timeout_s: float) -> int:
    below = descendants(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
    finally:
        end_processes(below, timeout_s=2.0)
        end_processes(below, timeout_s=2.0)  # the second time waits for those it has killed


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


def tree_pss_bytes(pid: int) -> int:
    """Return the proportional set size of a process and every one below it."""
    return sum(pss_bytes(each) for each in [pid, *(below.pid for below in descendants(pid))])


def tree_cpu_s(pid: int) -> float:
    """Return the processor time so far of a process and every living one below it."""
    return sum(_cpu_s(each) for each in [pid, *(below.pid for below in descendants(pid))])


def _cpu_s(pid: int) -> float:
    with suppress(OSError):
        # Fields count from behind the command's name, which may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def pss_bytes(pid: int) -> int:
    """Return the proportional set size of a process; 0 when it has ended."""
    with suppress(OSError):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
        return int(found[1]) * 1024 if found else 0
    return 0
