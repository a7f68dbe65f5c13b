"""Ray's control service is killed and started again as it was. Linux only."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.chaos.faults import NOTHING_EXCUSED, NoVictimError, Victims
from tests.chaos.outcome import FailureKind


@dataclass(frozen=True)
class RestartControlService:
    """`kill -9`, a while without it, and the same command in the same environment again.

    It finds its state again only where Ray keeps it on disk (`RAY_gcs_storage=rocksdb`), and others
    find it only at the port that it had, which Ray lets the system choose on a Ray of one's own.
    What was started here is no child of the server: `close` ends it.
    """

    name: str
    victims: Victims
    away_s: tuple[float, float] = (1.0, 15.0)
    excused: frozenset[FailureKind] = NOTHING_EXCUSED
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    async def strike(self, random: Random) -> str:
        """See `Fault.strike`."""
        away_s = random.uniform(*self.away_s)
        pid = self._started[-1].pid if self._started else self.victims.choose(random, 1)[0].pid
        command = [*_words(pid, "cmdline"), f"--gcs_server_port={self._port()}"]
        environment = dict(word.partition("=")[::2] for word in _words(pid, "environ"))
        folder = os.readlink(f"/proc/{pid}/cwd")
        os.kill(pid, signal.SIGKILL)
        if self._started:
            self._started[-1].wait()
        await asyncio.sleep(away_s)
        self._started.append(
            subprocess.Popen(
                command,
                env=environment,
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
        return f"killed {pid}, started again after {away_s:.1f} s"

    def _port(self) -> int:
        """Return where the others look for it."""
        for process in Victims(self.victims.root_pid, "--gcs-address=").find():
            known = re.search(r"--gcs-address=\S+:(\d+)", " ".join(_words(process.pid, "cmdline")))
            if known is not None:
                return int(known[1])
        raise NoVictimError("no process says where it looks for the control service")

    def close(self) -> None:
        """End what was started here."""
        for process in self._started:
            process.kill()
            process.wait()


def _words(pid: int, name: str) -> list[str]:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/{name}").read_bytes().decode().rstrip("\0").split("\0")
    raise NoVictimError(f"process {pid} has ended")
