"""Our own server on Ray as chaos sees it: kinds of process, scale, what requests hold."""

from __future__ import annotations

import asyncio
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

from tests.chaos.faults import NOTHING_EXCUSED, Victims
from tests.chaos.footprint import Footprint
from tests.chaos.outcome import FailureKind
from tests.chaos.tcp import TcpDetours
from trinity_serve.cli.admin import AdminClient
from trinity_serve.cli.endpoint import EndpointError

SHARD = "^ray::ExpertShard"
RANK = "^ray::ServeReplica:trinity:AttentionRank"
POOL = "^ray::ServeReplica:trinity:ExpertPool"
INGRESS = "^ray::ServeReplica:trinity:Ingress"
CONTROLLER = "^ray::ServeController"
PROXY = "^ray::ProxyActor"
CONTROL_SERVICE = r"/gcs_server "
POLL_S = 0.1
HELD = (
    "vllm_num_requests_running",
    "vllm_num_requests_waiting",
    "trinity_open_requests",
    "vllm_kv_cache_usage_perc",
)
"""Of `/metrics`: what is zero while nobody asks for anything."""


@dataclass(frozen=True)
class Target:
    """A running server, started with this scale."""

    url: str
    pid: int
    num_shards: int = 3
    num_replicas: int = 2
    num_ranks: int = 2
    detours: TcpDetours | None = None
    """Proxies between ranks and shards, where there are any."""
    admin: AdminClient = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "admin", AdminClient(self.url))

    def victims(self, pattern: str, *, newest: bool = False) -> Victims:
        """Return the server's processes of one kind."""
        return Victims(self.pid, pattern, newest)

    def settled(self) -> bool:
        """Whether it is again what it was at its start: every process there, no move left."""
        shards = len(self.victims(SHARD).find())
        ranks = len(self.victims(RANK).find())
        return (shards, ranks) == (self.num_shards, self.num_ranks) and self.pool_settled()

    def pool_settled(self) -> bool:
        """Whether the pool has nothing left to do."""
        try:
            status = self.admin.status()
        except EndpointError:
            return False
        return bool(status.get("settled") and status.get("covered"))

    def placement(self) -> str:
        """Return the version of the placement; empty while the pool does not answer."""
        try:
            return str(self.admin.status().get("placement", ""))
        except EndpointError:
            return ""

    def open_files(self) -> int:
        """Return the files and sockets of all processes that a request passes through."""
        kinds = (PROXY, INGRESS, RANK, SHARD)
        pids = [each.pid for kind in kinds for each in self.victims(kind).find()]
        return Footprint.of_processes(pids).open_files

    def is_ready(self) -> bool:
        """Whether `/ready` answers 200."""
        try:
            with urllib.request.urlopen(f"{self.url}/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def held(self) -> dict[str, float]:
        """Return what requests hold now, by the name of its metric; sums over labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        return {
            name: sum(map(float, re.findall(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE)))
            for name in HELD
        }

    def holds_nothing(self) -> bool:
        """Whether no request holds anything."""
        try:
            return not any(self.held().values())
        except (urllib.error.URLError, OSError):
            return False


@dataclass(frozen=True)
class Scale:
    """Another number of shards, copies or ranks, waited for."""

    name: str
    target: Target
    wanted: Mapping[str, int]
    timeout_s: float = 90.0
    excused: frozenset[FailureKind] = NOTHING_EXCUSED

    async def strike(self, random: Random) -> str:
        """See `Fault.strike`. Raises RuntimeError when it is not reached in time."""
        until_s = time.monotonic() + self.timeout_s
        await asyncio.to_thread(self._ask, until_s)
        while not await asyncio.to_thread(self._reached):
            if time.monotonic() > until_s:
                raise RuntimeError(f"{dict(self.wanted)} not reached in {self.timeout_s:g} s")
            await asyncio.sleep(POLL_S)
        return "scaled to " + ", ".join(f"{n} {what}" for what, n in self.wanted.items())

    def _ask(self, until_s: float) -> None:
        while True:
            try:
                self.target.admin.scale(dict(self.wanted))
            except EndpointError:
                # The pool may be away, which is what it is to survive.
                if time.monotonic() > until_s:
                    raise
                time.sleep(POLL_S)
            else:
                return

    def _reached(self) -> bool:
        counts = {"shards": SHARD, "ranks": RANK}
        for what, pattern in counts.items():
            found = len(self.target.victims(pattern).find())
            if self.wanted.get(what, found) != found:
                return False
        return self.target.pool_settled()
