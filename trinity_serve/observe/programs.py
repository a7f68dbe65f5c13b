"""Prometheus and Grafana as child processes: found, started, and ended together."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.deadline import Deadline
from trinity_serve.observe.scraping import Ports

END_TIMEOUT_S = 10.0
KILL_TIMEOUT_S = 5.0
_TOLD_LINES = 5

HOW_TO_INSTALL = {
    "prometheus": "apt-get install prometheus, or unpack the archive of prometheus.io/download and "
    "put its folder on PATH",
    "grafana": "unpack the Linux archive of grafana.com/grafana/download (or install its package) "
    "and put its bin folder on PATH",
}


class ProgramError(Exception):
    """A program is not installed, or has ended when it should run."""


@dataclass(frozen=True, slots=True)
class Programs:
    """Where both are."""

    prometheus: Path
    grafana: Path
    grafana_home: Path
    """What Grafana serves its pages from."""


def find_programs(path: str | None = None, grafana_home: Path | None = None) -> Programs:
    """Find both on PATH (or `path`). Raises `ProgramError` that says what to install."""
    prometheus = shutil.which("prometheus", path=path)
    # Up to version 9 the server was a program of its own.
    grafana = shutil.which("grafana", path=path) or shutil.which("grafana-server", path=path)
    found = {"prometheus": prometheus, "grafana": grafana}
    lacking = [f"{name}: {HOW_TO_INSTALL[name]}" for name, where in found.items() if where is None]
    if prometheus is None or grafana is None:
        raise ProgramError("not on PATH: " + "; ".join(lacking))
    program = Path(grafana).resolve()
    homes = [grafana_home] if grafana_home else [program.parent.parent, Path("/usr/share/grafana")]
    for home in homes:
        if (home / "conf/defaults.ini").is_file():
            return Programs(Path(prometheus), program, home)
    looked = " and ".join(f"{home}" for home in homes)
    raise ProgramError(f"Grafana's own files (conf/defaults.ini) are not in {looked}")


def commands(programs: Programs, folder: Path, ports: Ports) -> dict[str, list[str]]:
    """Return how each is started over the files in `folder`."""
    server = ["server"] if programs.grafana.name == "grafana" else []
    return {
        "prometheus": [
            str(programs.prometheus),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{ports.prometheus}",
        ],
        "grafana": [
            str(programs.grafana),
            *server,
            f"--homepath={programs.grafana_home}",
            f"--config={folder / 'grafana.ini'}",
        ],
    }


@dataclass(frozen=True, slots=True)
class Running:
    """One child and where it writes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raise `ProgramError` with its last words when it has ended."""
        status = self.process.poll()
        if status is None:
            return
        lines = self.log.read_text(encoding="utf8", errors="replace").splitlines()[-_TOLD_LINES:]
        raise ProgramError(f"{self.name} ended with status {status}: {' | '.join(lines)}")


@contextlib.contextmanager
def running(starts: dict[str, list[str]], folder: Path) -> Iterator[Sequence[Running]]:
    """Run all for the time of the block; none is left after it."""
    children: list[Running] = []
    try:
        for name, command in starts.items():
            log = folder / f"{name}.log"
            with log.open("wb") as output:
                # A group of its own: Ctrl-C of the terminal is ours to pass on, once.
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            children.append(Running(name, process, log))
        yield children
    finally:
        _end(children)


def _end(children: Sequence[Running]) -> None:
    for child in children:
        child.process.terminate()
    deadline = Deadline.after(END_TIMEOUT_S)
    for child in children:
        try:
            child.process.wait(deadline.remaining_s())
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait(KILL_TIMEOUT_S)
