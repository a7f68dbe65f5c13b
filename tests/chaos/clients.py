"""Clients that behave badly: they go away, or do not read what they asked for."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from urllib.parse import urlsplit

from tests.chaos.faults import NOTHING_EXCUSED
from tests.chaos.outcome import FailureKind
from tests.chaos.workload import ChaosRequest
from tests.support.http_stream import BrokenStreamError, post

TOO_MANY_REQUESTS = 429


@dataclass(frozen=True)
class VanishingClients:
    """Many clients open streams at once and go away after the first bytes.

    One that is refused for now (429) comes again after the second it is told, as clients do.
    """

    name: str
    url: str
    request: ChaosRequest
    count: int = 500
    timeout_s: float = 60.0
    excused: frozenset[FailureKind] = NOTHING_EXCUSED

    async def strike(self, random: Random) -> str:
        """See `Fault.strike`."""
        seen = await asyncio.gather(*(self._open_and_leave() for _ in range(self.count)))
        return f"{sum(seen)} of {self.count} clients left a stream that had begun"

    async def _open_and_leave(self) -> bool:
        with suppress(OSError, TimeoutError, BrokenStreamError):
            async with asyncio.timeout(self.timeout_s):
                while (again_s := await self._leave_early()) is not None:
                    await asyncio.sleep(again_s)
                return True
        return False

    async def _leave_early(self) -> float | None:
        """Return None once a stream has begun, or when to come again. Raises BrokenStreamError."""
        async with post(self.url, self.request.path, self.request.body) as answer:
            if answer.status == TOO_MANY_REQUESTS:
                return float(answer.headers["retry-after"])
            async for _ in answer.events():
                return None
        raise BrokenStreamError("the stream ended before it began")


@dataclass(frozen=True)
class SlowReaders:
    """Clients that send a request, read nothing for a while, and go away."""

    name: str
    url: str
    request: ChaosRequest
    count: int = 20
    for_s: float = 10.0
    excused: frozenset[FailureKind] = NOTHING_EXCUSED

    async def strike(self, random: Random) -> str:
        """See `Fault.strike`."""
        sent = await asyncio.gather(*(self._ask_and_wait() for _ in range(self.count)))
        return f"{sum(sent)} of {self.count} clients read nothing for {self.for_s:g} s"

    async def _ask_and_wait(self) -> bool:
        parts, body = urlsplit(self.url), self.request.body
        head = (
            f"POST {self.request.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        loop = asyncio.get_running_loop()
        with socket.socket() as connection, suppress(OSError):
            connection.setblocking(False)
            # The smallest buffer there is: what the server makes is to pile up on its side.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            await loop.sock_connect(connection, (parts.hostname, parts.port))
            await loop.sock_sendall(connection, head.encode() + body)
            await asyncio.sleep(self.for_s)
            return True
        return False
