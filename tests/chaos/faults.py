"""What is done to a running server. A fault finds its victims in the server's own tree alone."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol

from tests.chaos.outcome import FailureKind
from trinity_serve.processes import Process, descendants, is_alive

NOTHING_EXCUSED: frozenset[FailureKind] = frozenset()


class NoVictimError(Exception):
    """There is nothing that the fault could hit."""


class Fault(Protocol):
    """One kind of event."""

    @property
    def name(self) -> str:
        """What the table calls it."""

    @property
    def excused(self) -> frozenset[FailureKind]:
        """Failures of requests in flight that are no fault of the server then."""

    async def strike(self, random: Random) -> str:
        """Do it, and undo it where it is to be undone; return what was hit.

        Ends within a bounded time. Raises NoVictimError.
        """


@dataclass(frozen=True)
class Victims:
    """Processes below `root_pid` whose title or command line matches `pattern`."""

    root_pid: int
    pattern: str
    newest: bool = False
    """Whether those that were started last are chosen, and not any."""

    def find(self) -> list[Process]:
        """Return those that live now, in the order of their ids."""
        below = [each for each in descendants(self.root_pid) if is_alive(each)]
        found = [each for each in below if re.search(self.pattern, _command_line(each.pid))]
        return sorted(found, key=lambda each: each.pid)

    def choose(self, random: Random, count: int) -> list[Process]:
        """Return `count` of them. Raises NoVictimError when there are fewer."""
        found = self.find()
        if len(found) < count:
            below = len(descendants(self.root_pid))
            raise NoVictimError(
                f"{len(found)} of {below} processes below {self.root_pid} match "
                f"{self.pattern!r}, {count} are needed"
            )
        if self.newest:
            return sorted(found, key=lambda each: each.started)[-count:]
        return random.sample(found, count)


def _command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return ""


def send_signal(process: Process, number: signal.Signals) -> None:
    """Send it, unless the process has ended."""
    if is_alive(process):  # else its id may be another's by now
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


@dataclass(frozen=True)
class Kill:
    """`kill -9` of some processes at once."""

    name: str
    victims: Victims
    count: int = 1
    excused: frozenset[FailureKind] = NOTHING_EXCUSED

    async def strike(self, random: Random) -> str:
        """See `Fault.strike`."""
        chosen = self.victims.choose(random, self.count)
        for process in chosen:
            send_signal(process, signal.SIGKILL)
        return f"killed {[process.pid for process in chosen]}"


@dataclass(frozen=True)
class Freeze:
    """SIGSTOP, and SIGCONT after a while: alive and silent."""

    name: str
    victims: Victims
    for_s: float = 10.0
    excused: frozenset[FailureKind] = NOTHING_EXCUSED

    async def strike(self, random: Random) -> str:
        """See `Fault.strike`."""
        [process] = self.victims.choose(random, 1)
        send_signal(process, signal.SIGSTOP)
        try:
            await asyncio.sleep(self.for_s)
        finally:
            send_signal(process, signal.SIGCONT)
        return f"stopped {process.pid} for {self.for_s:g} s"


@dataclass(frozen=True)
class KeepAway:
    """`kill -9` of some processes; what takes their place is stopped as soon as it appears."""

    name: str
    victims: Victims
    count: int
    for_s: float
    excused: frozenset[FailureKind] = NOTHING_EXCUSED

    async def strike(self, random: Random) -> str:
        """See `Fault.strike`."""
        chosen = self.victims.choose(random, self.count)
        staying = set(self.victims.find()) - set(chosen)
        stopped: set[Process] = set()
        for process in chosen:
            send_signal(process, signal.SIGKILL)
        until_s = time.monotonic() + self.for_s
        try:
            while time.monotonic() < until_s:
                for process in set(self.victims.find()) - staying - stopped:
                    send_signal(process, signal.SIGSTOP)
                    stopped.add(process)
                await asyncio.sleep(0.02)
        finally:
            for process in stopped:
                send_signal(process, signal.SIGCONT)
        pids = [process.pid for process in chosen]
        return f"killed {pids}, and let none take their place for {self.for_s:g} s"


@dataclass(frozen=True)
class Throttle:
    """SIGSTOP and SIGCONT in turn, many times: alive, answering, and slow."""

    name: str
    victims: Victims
    for_s: float = 8.0
    stopped_s: float = 0.09
    running_s: float = 0.01
    excused: frozenset[FailureKind] = NOTHING_EXCUSED

    async def strike(self, random: Random) -> str:
        """See `Fault.strike`."""
        [process] = self.victims.choose(random, 1)
        until_s = time.monotonic() + self.for_s
        try:
            while time.monotonic() < until_s and is_alive(process):
                send_signal(process, signal.SIGSTOP)
                await asyncio.sleep(self.stopped_s)
                send_signal(process, signal.SIGCONT)
                await asyncio.sleep(self.running_s)
        finally:
            send_signal(process, signal.SIGCONT)
        share = self.running_s / (self.running_s + self.stopped_s)
        return f"gave {process.pid} {share:.0%} of its time for {self.for_s:g} s"


@dataclass(frozen=True)
class Command:
    """A command that changes the server, such as scaling it; it must succeed in time."""

    name: str
    arguments: Sequence[str]
    timeout_s: float = 60.0
    excused: frozenset[FailureKind] = NOTHING_EXCUSED

    async def strike(self, random: Random) -> str:
        """See `Fault.strike`. Raises RuntimeError when the command fails."""
        process = await asyncio.create_subprocess_exec(
            *self.arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), self.timeout_s)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise RuntimeError(f"{self.arguments} took more than {self.timeout_s:g} s") from None
        if process.returncode != 0:
            raise RuntimeError(f"{self.arguments}: {output.decode()[-500:]}")
        return f"ran {' '.join(self.arguments)}"
