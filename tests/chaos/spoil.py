"""A shard of a running server whose replies are damaged, doubled, disordered, cut or held back."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.chaos.detour import Detour, listening_paths
from tests.chaos.faults import NOTHING_EXCUSED, NoVictimError, Victims, send_signal
from tests.chaos.outcome import FailureKind
from tests.chaos.proxy import FaultProxy, Faults

POLL_S = 0.005
"""A new shard's socket is found before ranks hear of it: its pool asks four times a second."""


@dataclass(frozen=True)
class SpoilReplies:
    """A shard is killed; replies of its successor pass through a proxy that spoils some of them.

    At the end the proxy goes away, which breaks its connections once more.
    """

    name: str
    shards: Victims
    faults: Faults
    for_s: float = 6.0
    appears_within_s: float = 60.0
    excused: frozenset[FailureKind] = NOTHING_EXCUSED

    async def strike(self, random: Random) -> str:
        """See `Fault.strike`. Raises NoVictimError also when no reply could be spoilt."""
        [victim] = self.shards.choose(random, 1)
        sockets = [path for path in listening_paths(victim.pid) if "trinity-shard-" in str(path)]
        if not sockets:
            raise NoVictimError(f"shard {victim.pid} does not listen on a Unix socket")
        pattern, folder = f"trinity-shard-*/{sockets[0].name}", sockets[0].parents[1]
        known = set(folder.glob(pattern))
        send_signal(victim, signal.SIGKILL)

        def newcomers() -> set[Path]:
            return set(folder.glob(pattern)) - known

        await self._until(lambda: bool(newcomers()), "no shard took its place")
        detour = Detour(newcomers().pop(), random.getrandbits(31))
        try:
            spoilt = await self._spoil(detour.proxy)
        finally:
            await asyncio.to_thread(detour.close)
        return f"killed {victim.pid}; of its successor's replies: {spoilt}"

    async def _spoil(self, proxy: FaultProxy) -> str:
        proxy.faults = self.faults
        await self._until(lambda: proxy.injected.total() > 0, "no reply came to be spoilt")
        await asyncio.sleep(self.for_s)
        return ", ".join(f"{count} {fault}" for fault, count in sorted(proxy.injected.items()))

    async def _until(self, condition: Callable[[], bool], otherwise: str) -> None:
        until_s = time.monotonic() + self.appears_within_s
        while not condition():
            if time.monotonic() > until_s:
                raise NoVictimError(f"{otherwise} within {self.appears_within_s:g} s")
            await asyncio.sleep(POLL_S)
