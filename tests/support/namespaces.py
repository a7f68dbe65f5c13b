"""Machines of their own on this one: network namespaces on a bridge. Needs root and `ip`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

COMMAND_TIMEOUT_S = 20.0


def why_not() -> str:
    """Return why namespaces cannot be made here; empty when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the command ip (Debian: iproute2)"
    name = f"trinity-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"network namespaces are not allowed here: {made.stderr.strip()}"
    _ip("netns", "delete", name)
    return ""


@dataclass(frozen=True)
class Machine:
    """One namespace with one link to the bridge."""

    name: str
    host: str
    switch: str
    port: str

    def command(self, *words: str) -> list[str]:
        """Return the command that runs `words` there, as the very process that it starts."""
        return ["ip", "netns", "exec", self.name, *words]

    def set_link(self, up: bool) -> None:
        """Plug its cable in or out: nothing is answered, nothing is refused."""
        _ip("-n", self.switch, "link", "set", self.port, "up" if up else "down")

    def limit(self, rate: str) -> None:
        """Limit its cable in both directions to a rate in tc's words, e.g. ``1gbit``."""
        # The bucket holds a few of the 64 KiB segments that TCP hands down in one piece.
        bucket = ("tbf", "rate", rate, "burst", "256kb", "latency", "50ms")
        _run(["tc", "-n", self.switch, "qdisc", "replace", "dev", self.port, "root", *bucket])
        _run(["tc", "-n", self.name, "qdisc", "replace", "dev", "eth0", "root", *bucket])

    def received_bytes(self) -> int:
        """Return what came in over its link so far."""
        path = "/sys/class/net/eth0/statistics/rx_bytes"
        return int(_run(self.command("cat", path)))


@contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """Make so many machines on one bridge, which no other network is connected to."""
    prefix = f"trinity-{os.getpid()}"
    switch = f"{prefix}-sw"
    made = [
        Machine(f"{prefix}-{number}", f"10.77.0.{10 + number}", switch, f"port{number}")
        for number in range(count)
    ]
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        for machine in made:
            _connect(machine)
        yield made
    finally:
        for name in [machine.name for machine in made] + [switch]:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _connect(machine: Machine) -> None:
    name, switch, port = machine.name, machine.switch, machine.port
    _ip("netns", "add", name)
    _ip("-n", name, "link", "set", "lo", "up")
    peer = ("peer", "name", port, "netns", switch)
    _ip("-n", name, "link", "add", "eth0", "type", "veth", *peer)
    _ip("-n", name, "addr", "add", f"{machine.host}/24", "dev", "eth0")
    _ip("-n", name, "link", "set", "eth0", "up")
    _ip("-n", switch, "link", "set", port, "master", "br0")
    _ip("-n", switch, "link", "set", port, "up")


def _ip(*words: str) -> None:
    _run(["ip", *words])


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout
