"""Proxies in the way of every shard that ranks reach over TCP, on an address of their own.

A server that is told `network.bind_host` and another `network.advertise_host` listens at the first
and tells ranks the second. At the second, only these proxies listen, on the same ports. Linux only.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from tests.chaos.detour import socket_inodes
from tests.chaos.faults import NOTHING_EXCUSED, NoVictimError, Victims
from tests.chaos.outcome import FailureKind
from tests.chaos.proxy import CALM, FaultProxy, Faults

BIND_HOST = "127.0.0.1"
ADVERTISE_HOST = "127.0.0.2"
POLL_S = 0.1
_LISTENING = "0A"
"""State of a socket in `/proc/net/tcp`."""
_MAPPED = f"{struct.unpack('=I', bytes.fromhex('0000ffff'))[0]:08X}"
"""What an IPv4 address has before it as an IPv6 one, in words of the machine's byte order."""


def listening_ports(pid: int, host: str = BIND_HOST) -> list[int]:
    """Return the TCP ports that a process listens on at an IPv4 address."""
    own = socket_inodes(pid)
    address = f"{struct.unpack('=I', socket.inet_aton(host))[0]:08X}"
    # gRPC listens at IPv4 addresses by IPv6 sockets.
    tables = {"tcp": address, "tcp6": f"{'0' * 16}{_MAPPED}{address}"}
    ports = []
    for table, wanted in tables.items():
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            # sl local_address rem_address st queues timer retransmits uid timeout inode ...
            fields = line.split()
            at, _, port = fields[1].partition(":")
            if fields[3] == _LISTENING and at == wanted and fields[9] in own:
                ports.append(int(port, 16))
    return ports


class TcpDetours:
    """A calm proxy before each port of each shard, from soon after its birth to the block's end."""

    def __init__(self, shards: Victims) -> None:
        self._shards = shards
        self._lock = threading.Lock()  # guards what follows
        self._proxies: dict[int, FaultProxy] = {}
        """By port, which shard and proxy have in common."""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="tcp-detours", daemon=True)

    def __enter__(self) -> TcpDetours:
        """Begin to look for shards."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Break every connection."""
        self._closing.set()
        self._thread.join()
        for proxy in self._proxies.values():
            proxy.close()

    def _watch(self) -> None:
        while not self._closing.wait(POLL_S):
            pids = [process.pid for process in self._shards.find()]
            ports = {port for pid in pids for port in listening_ports(pid)}
            with self._lock:
                for port in self._proxies.keys() - ports:
                    self._proxies.pop(port).close()
                for port in ports - self._proxies.keys():
                    ways = (f"grpc://{ADVERTISE_HOST}:{port}", f"grpc://{BIND_HOST}:{port}")
                    self._proxies[port] = FaultProxy(*ways, CALM, seed=port)

    def before(self, pid: int) -> list[FaultProxy]:
        """Return the proxies before a process."""
        with self._lock:
            found = [self._proxies.get(port) for port in listening_ports(pid)]
        return [proxy for proxy in found if proxy is not None]


@dataclass(frozen=True)
class SpoilConnections:
    """For a while, connections to one shard suffer; its ranks are told nothing."""

    name: str
    shards: Victims
    detours: TcpDetours
    faults: Faults
    for_s: float = 6.0
    within_s: float = 30.0
    excused: frozenset[FailureKind] = NOTHING_EXCUSED

    async def strike(self, random: Random) -> str:
        """See `Fault.strike`. Raises NoVictimError also when there was nothing to be spoilt."""
        [victim] = self.shards.choose(random, 1)
        proxies = await asyncio.to_thread(self.detours.before, victim.pid)
        before = sum(proxy.injected.total() for proxy in proxies)
        try:
            for proxy in proxies:
                proxy.faults = self._more_than(proxy.injected.total())
            until_s = time.monotonic() + self.within_s
            while sum(proxy.injected.total() for proxy in proxies) == before:
                if time.monotonic() > until_s:
                    raise NoVictimError(f"nothing passed {len(proxies)} proxies to be spoilt")
                await asyncio.sleep(0.05)
            await asyncio.sleep(self.for_s)
        finally:
            for proxy in proxies:
                proxy.faults = CALM
        done = sum(proxy.injected.total() for proxy in proxies) - before
        return f"{done} times {', '.join(self.faults.kinds)} between ranks and {victim.pid}"

    def _more_than(self, done: int) -> Faults:
        most = self.faults.most
        return replace(self.faults, most=None if most is None else most + done)
