"""A server on Ray as a process of its own, started and ended by a test."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trinity_serve.processes import descendants, is_alive

REPOSITORY = Path(__file__).parents[2]
START_TIMEOUT_S = 90.0


def eventually(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait until `condition` holds; fail when it does not in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "condition did not come true"
        time.sleep(0.05)


@dataclass
class RayServer:
    """A running server: its process, endpoint and folder for temporary files."""

    process: subprocess.Popen[bytes]
    endpoint: str
    folder: Path

    def pids(self, title: str) -> list[int]:
        """Return the server's processes whose title or state line starts with `title`."""
        found = []
        for each in descendants(self.process.pid):
            try:
                command = Path(f"/proc/{each.pid}/cmdline").read_text().rstrip("\0")
            except OSError:
                continue
            if command.startswith(title):
                found.append(each.pid)
        return sorted(found)

    def post(self, path: str, body: Mapping[str, object]) -> Iterator[dict[str, object]]:
        """Yield the chunks of a streamed answer, or the one object of another."""
        request = urllib.request.Request(
            self.endpoint + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            if not body.get("stream"):
                yield json.load(answer)
                return
            for line in answer:
                data = line.strip().removeprefix(b"data: ")
                if data.startswith(b"{"):
                    yield json.loads(data)

    def is_ready(self) -> bool:
        """Whether `/ready` answers 200."""
        try:
            with urllib.request.urlopen(self.endpoint + "/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextmanager
def running(command: list[str], folder: Path) -> Iterator[RayServer]:
    """Run `command`, which prints its endpoint when ready, until the block ends."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(folder)}
    output = folder / "server.log"
    with output.open("w") as log:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield RayServer(process, _endpoint(process, output), folder)
    finally:
        started = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        finally:
            process.kill()
    eventually(lambda: not any(is_alive(each) for each in started), timeout_s=5)


def _endpoint(process: subprocess.Popen[bytes], output: Path) -> str:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        ready = re.search(r"(?:READY|Ready:) (http://[\d.]+:\d+)", output.read_text())
        if ready is not None:
            return ready[1]
        time.sleep(0.05)
    raise AssertionError(f"the server did not get ready: {output.read_text()[-4000:]}")


def python(*arguments: str) -> list[str]:
    """Return a command of this interpreter."""
    return [sys.executable, *arguments]
