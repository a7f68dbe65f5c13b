"""Which TCP and UDP ports processes of this machine listen on, as the kernel tells."""

from __future__ import annotations

import ipaddress
import os
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"


@dataclass(frozen=True, order=True)
class Listening:
    """One listening TCP socket, and whose it is."""

    host: str
    port: int
    command: str
    """Of the process; Ray's workers have their actor's name there."""

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        address = ipaddress.ip_address(self.host)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def listening_ports(pids: Iterable[int]) -> set[Listening]:
    """Return every listening TCP socket that one of `pids` holds open."""
    owners = {inode: pid for pid in pids for inode in _sockets_of(pid)}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and fields[9] in owners:
                host, _, port = fields[1].partition(":")
                command = _command_of(owners[fields[9]])
                found.add(Listening(_address(host), int(port, 16), command))
    return found


def _sockets_of(pid: int) -> Iterator[str]:
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{name}"))
                if found is not None:
                    yield found[1]


def _command_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return ""


def _address(text: str) -> str:
    """Return the address in the kernel's hex: little-endian words."""
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    packed = struct.pack(f"<{len(words)}I", *words)
    return str(ipaddress.ip_address(packed))
