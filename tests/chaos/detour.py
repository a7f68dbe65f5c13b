"""A proxy of ours in the way to a shard of a running server, whose code knows nothing of it.

The server's own seam is its socket file: who connects by that name next meets the proxy, and what
listened there is reached behind it. Connections that are open go on as they are. Linux only.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from tests.chaos.proxy import CALM, FaultProxy

_LISTENING = 0x10000
"""Of the flags in `/proc/net/unix`: `__SO_ACCEPTCON`."""


class Detour:
    """A `FaultProxy` in the place of a Unix socket's file, for the time of a block."""

    def __init__(self, path: Path, seed: int) -> None:
        self._path, self._behind = path, path.with_name(f"{path.name}.behind")
        path.rename(self._behind)
        self.proxy = FaultProxy(f"unix:{path}", f"unix:{self._behind}", CALM, seed)

    def __enter__(self) -> Detour:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Break what passes through, and let the way be straight again."""
        self.proxy.close()
        with suppress(FileNotFoundError):  # its process has ended and cleared up
            self._behind.rename(self._path)


def listening_paths(pid: int) -> list[Path]:
    """Return the Unix sockets that a process listens on."""
    own = socket_inodes(pid)
    paths = []
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        # Num RefCount Protocol Flags Type St Inode Path
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and int(fields[3], 16) & _LISTENING and fields[6] in own:
            paths.append(Path(fields[7]))
    return paths


def socket_inodes(pid: int) -> set[str]:
    """Return the inodes of a process's sockets, as `/proc/net` names them."""
    inodes = set()
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                inodes.add(os.readlink(entry.path).removeprefix("socket:[").removesuffix("]"))
    return inodes
