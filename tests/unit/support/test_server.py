"""Server commands are awaited, weighed and ended, with all that they started."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.server import PeakPss, ServerCommand, running
from trinity_serve.processes import descendants

SERVER = """
import http.server, signal, subprocess, sys
sleep = "import time; x = bytearray(40_000_000); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", sleep])
def end(*_):
    raise SystemExit({code})
signal.signal(signal.SIGINT, end)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
if sys.argv[1] == "0":
    print(f"Ready: http://127.0.0.1:{{server.server_port}}/v1 serves", flush=True)
server.serve_forever()
"""


def command(port: str, code: int = 0) -> ServerCommand:
    return ServerCommand((sys.executable, "-c", SERVER.format(code=code), port), stop_timeout_s=10)


@pytest.mark.parametrize("port", ["{port}", "0"])
def test_a_server_is_ready_weighs_its_children_too_and_leaves_none(port: str) -> None:
    with running(command(port)) as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert server.start_s > 0
        pids = [server.process.pid, *(each.pid for each in descendants(server.process.pid))]
        assert len(pids) == 2
        with PeakPss(server.process.pid, every_s=0.01) as memory:
            alone = Path(f"/proc/{pids[0]}/smaps_rollup").read_text()
        assert memory.peak_bytes > int(alone.split("Pss:")[1].split()[0]) * 1024
    assert not any(map(is_running, pids))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_server_that_ends_with_another_code_is_an_error() -> None:
    with (
        pytest.raises(RuntimeError, match="ended with 7"),
        running(command("{port}", code=7)) as server,
    ):
        assert server.process.poll() is None


def test_a_command_that_ends_at_once_is_an_error_with_its_output() -> None:
    failing = ServerCommand((sys.executable, "-c", "raise SystemExit('no such model')", "{port}"))
    with pytest.raises(RuntimeError, match="no such model"), running(failing):
        pytest.fail("it was never ready")


def test_memory_is_watched_from_the_start_when_asked_for() -> None:
    loading = "import time; x = b'x' * 150_000_000; time.sleep(1.5); del x\n" + SERVER.format(
        code=0
    )
    watched = ServerCommand((sys.executable, "-c", loading, "{port}"), watches_memory=True)
    with running(replace(watched, stop_timeout_s=10)) as server:
        assert server.memory is not None
    assert server.memory.peak_bytes > 150_000_000
