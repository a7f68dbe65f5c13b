"""`trinity serve` as a user runs it: a process of its own, over HTTP, ended by a signal."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import pytest

from trinity_serve.synthetic import write_checkpoint

START_BUDGET_S = 60.0
STOP_BUDGET_S = 10.0
TRINITY = (sys.executable, "-m", "trinity_serve.cli.main")


class Served:
    """A running `trinity serve`, and what it printed when it was ready."""

    def __init__(self, process: subprocess.Popen[str], printed: str) -> None:
        self.process, self.printed = process, printed
        self.endpoint = re.findall(r"Ready: (http://\S+)/v1 ", printed)[0]

    def end(self, number: signal.Signals) -> int:
        """Send one signal to the server alone; return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=STOP_BUDGET_S)


def read_until_curl_line(process: subprocess.Popen[str]) -> str:
    """Return what the server prints up to its curl line; fail with its log when it ends before.

    A server that is not ready within its budget is killed, which ends its output.
    """
    assert process.stdout is not None
    printed = ""
    budget = Timer(START_BUDGET_S, process.kill)
    budget.start()
    try:
        for line in process.stdout:
            printed += line
            if line.strip().startswith("curl "):
                return printed
    finally:
        budget.cancel()
        budget.join()
    raise AssertionError(f"the server ended with {process.wait(STOP_BUDGET_S)}: {printed}")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint("demo", tmp_path_factory.mktemp("models") / "demo")


@contextmanager
def serving(checkpoint: Path, *options: str) -> Iterator[Served]:
    """Start a server of the checkpoint on a free port; end what is left of it."""
    process = subprocess.Popen(
        [*TRINITY, "serve", "--model", str(checkpoint), "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield Served(process, read_until_curl_line(process))
        finally:
            process.kill()


@pytest.fixture(scope="module")
def served(checkpoint: Path) -> Iterator[Served]:
    """One running server for the tests that leave it running."""
    with serving(checkpoint) as running:
        yield running


def get(url: str) -> int:
    with urllib.request.urlopen(url, timeout=START_BUDGET_S) as response:
        return int(response.status)


def processes_of_session(session: int) -> list[int]:
    """Return the living processes whose session was started by `session`."""
    living = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, owner = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(owner) == session and state != "Z":
            living.append(int(stat.parent.name))
    return living


def refusal_of(*options: str) -> str:
    """Run a `trinity serve` that must be refused; return the line it is refused with."""
    command = [*TRINITY, "serve", *options]
    refused = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=START_BUDGET_S
    )
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    return refused.stderr.splitlines()[-1]


def test_it_is_ready_when_it_says_so_and_its_curl_line_works(served: Served) -> None:
    assert get(f"{served.endpoint}/ready") == 200
    line = served.printed.splitlines()[-1].strip()
    _, url, _, header, _, body = shlex.split(line)
    request = urllib.request.Request(url, body.encode(), dict([header.split(": ")]))
    with urllib.request.urlopen(request, timeout=START_BUDGET_S) as response:
        answer = json.loads(response.read())
    assert answer["model"] == "demo"
    assert answer["choices"][0]["message"]["content"]


def test_the_terminal_chat_talks_to_it(served: Served) -> None:
    command = [*TRINITY, "chat", "--url", served.endpoint, "--max-tokens", "8"]
    chat = subprocess.run(
        command,
        input="/system be brief\nhello\n/quit\n",
        capture_output=True,
        text=True,
        check=True,
        timeout=START_BUDGET_S,
    )
    greeting, _, answer = chat.stdout.partition("\n")
    assert greeting.startswith(f"demo at {served.endpoint}/v1")
    assert len(answer.replace("you>", "").strip()) > 0
    assert chat.stderr == ""


def test_a_port_in_use_is_refused_in_one_line(served: Served, checkpoint: Path) -> None:
    port = served.endpoint.rpartition(":")[2]
    assert port in refusal_of("--model", str(checkpoint), "--port", port)


def test_sigterm_ends_it_and_its_children_with_exit_code_0(checkpoint: Path) -> None:
    with serving(checkpoint, "--shards", "2") as served:
        session = os.getsid(served.process.pid)
        assert served.end(signal.SIGTERM) == 0
        assert processes_of_session(session) == []
        with pytest.raises(OSError, match="refused"):
            get(f"{served.endpoint}/ready")


def test_ctrl_c_during_a_stream_ends_it_and_its_children_with_exit_code_0(
    checkpoint: Path,
) -> None:
    body = {"model": "demo", "prompt": "on", "stream": True, "max_tokens": 512, "ignore_eos": True}
    with serving(checkpoint) as served:
        session = os.getsid(served.process.pid)
        request = urllib.request.Request(
            f"{served.endpoint}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=START_BUDGET_S) as response:
            assert response.readline().startswith(b"data: ")
            assert served.end(signal.SIGINT) == 0
        assert processes_of_session(session) == []


def test_a_model_that_is_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    assert "absent" in refusal_of("--model", str(tmp_path / "absent"), "--port", "0")


def test_help_answers_at_once_and_without_torch() -> None:
    script = (
        "import sys; from trinity_serve.cli.main import main; code = main(['--help']);"
        "sys.exit(code or ('torch' in sys.modules) or ('pydantic' in sys.modules))"
    )
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", script], check=True, timeout=START_BUDGET_S)
    # A tenth of it on an idle machine; importing torch would take longer than all of it.
    assert time.monotonic() - start < 1.5
