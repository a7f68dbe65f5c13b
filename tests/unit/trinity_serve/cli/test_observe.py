"""`trinity observe` with programs that only pretend to be Prometheus and Grafana."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trinity_serve.cli.main import main

# Notes how it was started and what it can read, and ends when it is told to.
PRETENDER = """\
#!/bin/sh
trap 'echo ended > "{notes}/$(basename "$0").ended"; exit 0' TERM
echo "$0 $*" > "{notes}/$(basename "$0").command"
for argument in "$@"; do
  case "$argument" in
    --config*=*) cp "${{argument#*=}}" "{notes}/$(basename "$0").config" ;;
  esac
done
while :; do sleep 0.05; done
"""
BROKEN = """\
#!/bin/sh
while [ ! -e "{notes}/grafana.command" ]; do sleep 0.02; done
echo 'listen tcp: address already in use' >&2
exit 3
"""
DEADLINE_S = 20.0


class Machine:
    """A PATH with programs of ours on it."""

    def __init__(self, folder: Path) -> None:
        self.notes, self.home = folder / "notes", folder / "grafana-home"
        self.bin = self.home / "bin"
        self.bin.mkdir(parents=True)
        self.notes.mkdir()
        (self.home / "conf").mkdir()
        (self.home / "conf/defaults.ini").touch()

    def install(self, name: str, script: str = PRETENDER) -> None:
        program = self.bin / name
        program.write_text(script.format(notes=self.notes))
        program.chmod(0o755)

    def note(self, name: str) -> str:
        file = self.notes / name
        return file.read_text() if file.exists() else ""

    def observe(self, *arguments: str) -> subprocess.Popen[str]:
        path = f"{self.bin}:/usr/bin:/bin"
        return subprocess.Popen(
            [sys.executable, "-m", "trinity_serve.cli.main", "observe", "--direct", *arguments],
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_run_over_one_folder_until_ctrl_c_and_leave_nothing(
    machine: Machine, number: signal.Signals
) -> None:
    machine.install("prometheus")
    machine.install("grafana")
    observing = machine.observe("--url", "http://127.0.0.1:8123", "--grafana-port", "13000")
    until(lambda: bool(machine.note("grafana.config") and machine.note("prometheus.config")))
    observing.send_signal(number)
    out, err = observing.communicate(timeout=DEADLINE_S)
    assert (observing.returncode, err) == (0, "")
    assert "http://127.0.0.1:8123/metrics" in out
    assert "http://127.0.0.1:13000/d/trinity-serve" in out
    assert machine.note("prometheus.ended") == machine.note("grafana.ended") == "ended\n"
    assert "127.0.0.1:8123" in machine.note("prometheus.config")
    assert "http_port = 13000" in machine.note("grafana.config")
    program, subcommand, home, config = machine.note("grafana.command").split()
    assert (program, subcommand) == (str(machine.bin / "grafana"), "server")
    assert home == f"--homepath={machine.home}"
    assert not Path(config.removeprefix("--config=")).parent.exists()


def test_when_one_ends_the_other_is_ended_and_its_last_words_are_told(machine: Machine) -> None:
    machine.install("prometheus", BROKEN)
    machine.install("grafana")
    observing = machine.observe()
    _, err = observing.communicate(timeout=DEADLINE_S)
    assert observing.returncode == 1
    assert "prometheus ended with status 3" in err
    assert "address already in use" in err
    assert machine.note("grafana.ended") == "ended\n"


@pytest.mark.parametrize(
    ("installed", "lacking"),
    [((), ["prometheus: ", "grafana: "]), (("prometheus",), ["grafana: "])],
)
def test_what_is_not_installed_is_named_with_what_to_do(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    installed: tuple[str, ...],
    lacking: list[str],
) -> None:
    for name in installed:
        machine.install(name)
    monkeypatch.setenv("PATH", str(machine.bin))
    assert main(["observe"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for text in lacking:
        assert text in err
    assert ("prometheus: " in err) == ("prometheus" not in installed)


def test_grafana_without_its_own_files_is_said_with_where_they_were_looked_for(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.install("prometheus")
    machine.install("grafana")
    (machine.home / "conf/defaults.ini").unlink()
    monkeypatch.setenv("PATH", str(machine.bin))
    assert main(["observe", "--grafana-home", str(machine.home)]) == 1
    assert str(machine.home) in capsys.readouterr().err


def test_a_folder_in_which_no_ray_runs_is_refused(
    machine: Machine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine.install("prometheus")
    machine.install("grafana")
    monkeypatch.setenv("PATH", str(machine.bin))
    assert main(["observe", "--ray-folder", str(tmp_path)]) == 2
    assert "no Ray" in capsys.readouterr().err
