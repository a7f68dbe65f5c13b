"""An expert shard as a Ray actor: a thin shell around a host that loads and serves a slice.

The actor answers its pool while the host's thread computes; it ends itself when the host cannot
load, and when it is an orphan.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import ray

from cluster.errors import StaleEpochError
from cluster.pool_messages import (
    HoldsLE,
    LaunchOrder,
    Scale,
    ShardReport,
    SumsLE,
)
from cluster.types import PlacementVersion
from experts.orphan import OrphanWatch

logger = logging.getLogger(__name__)

WATCH_S = 0.5
PROBLEM_SHOWN_S = 2.0
"""How long a shard that cannot load lives on, for its pool to ask why."""


class ShardHost(Protocol):
    """What loads a slice and serves it on one thread."""

    loaded_bytes: int
    total_bytes: int
    address: str
    """Where ranks connect, once loaded."""

    @property
    def revision(self) -> int:
        """Grows with every change of what is held; above 0 once loaded."""
        ...

    @property
    def problem(self) -> str:
        """Why what it was told to hold while serving cannot be read, or an empty text."""
        ...

    def load(self) -> None:
        """Read the slice; blocks. Raises `TrinityError`."""

    def serve(self) -> None:
        """Answer ranks until `stop`; blocks."""

    def stop(self) -> None:
        """End `serve`; thread-safe."""

    def place(self, version: PlacementVersion) -> None:
        """Serve under this placement; thread-safe."""

    def hold(self, holds_LE: HoldsLE) -> None:
        """Hold these experts from now on, and no others; thread-safe, returns at once."""

    def sums(self) -> SumsLE:
        """Return the checksum of each expert that is held; thread-safe."""

    def idle_s(self) -> float:
        """Return how long the compute loop has made no turn that was due."""

    def heard_at_s(self) -> float:
        """Return when a rank was last heard, on the monotonic clock."""


HostFactory = Callable[[LaunchOrder, str], ShardHost]
"""Makes a host from its order and the address of the node it runs on."""


@dataclass(frozen=True, slots=True)
class ShardLife:
    """What is the same for all shards of an application."""

    orphan_grace_s: float
    domain_label: str | None = None
    """Ray node label that names a failure domain."""
    serves: str = ""
    """See `ShardLauncher.serves`."""
    warm: Callable[[], object] = lambda: None
    """Imports what a shard needs, in a process that waits to become one."""


class ExpertShard:
    """The actor. Its methods run on Ray's threads, the host on one of its own."""

    def __init__(self, order: LaunchOrder, open_host: HostFactory, life: ShardLife) -> None:
        logging.basicConfig(level=logging.INFO)
        self._order = order
        self._serves = life.serves
        self._open_host = open_host
        self._host: ShardHost | None = None
        self._epoch = order.epoch
        self._scale = order.scale
        self._ready = False
        self._problem = ""
        context = ray.get_runtime_context()
        self._node = context.get_node_id()
        labels = context.get_node_labels()
        self._label = str(labels.get(life.domain_label, "")) if life.domain_label else ""
        self._orphan = OrphanWatch(life.orphan_grace_s, time.monotonic())
        threading.Thread(target=self._run, name="expert-shard", daemon=True).start()
        threading.Thread(target=self._watch, name="orphan-watch", daemon=True).start()

    def _run(self) -> None:
        """Load and serve; the process ends with this thread, whatever ends it."""
        try:
            # Here and not in the constructor, whose failures nobody is told the reason of.
            host = self._open_host(self._order, str(ray.util.get_node_ip_address()))  # type: ignore[no-untyped-call]
            self._host = host
            host.load()
            self._ready = True
            host.serve()
        except Exception as error:
            # The pool reads the problem once, and tries again later with another actor.
            logger.exception("this shard ends")
            self._problem = str(error)
            time.sleep(PROBLEM_SHOWN_S)
            os._exit(1)
        os._exit(0)

    def _watch(self) -> None:
        while not self._orphan.alone(time.monotonic()):
            time.sleep(WATCH_S)
            if self._host is not None:
                self._orphan.heard(self._host.heard_at_s())
        logger.warning("heard neither a pool nor a rank for too long; ending")
        if self._host is not None:
            self._host.stop()
        time.sleep(WATCH_S)
        os._exit(0)

    def describe(self, seen_revision: int = 0) -> ShardReport:
        """Return what the pool has to know; what is held only when that is news to it."""
        self._orphan.heard(time.monotonic())
        report = ShardReport(self._order.key, False, 0, 0, "", self._node, self._epoch, self._scale)
        report = replace(report, token=self._order.token, label=self._label, pid=os.getpid())
        report = replace(report, serves=self._serves)
        host = self._host
        if host is None:
            return replace(report, problem=self._problem)
        ready, revision = self._ready, host.revision
        return replace(
            report,
            ready=ready,
            loaded_bytes=host.loaded_bytes,
            total_bytes=host.total_bytes,
            address=host.address if ready else "",
            problem=self._problem or host.problem,
            # Read after the revision: what changes in between is news the next time too.
            sums_LE=host.sums() if ready and revision != seen_revision else None,
            revision=revision if ready else 0,
            idle_s=host.idle_s() if ready else 0.0,
        )

    def hold(self, epoch: int, holds_LE: HoldsLE) -> None:
        """Hold these experts from now on. Raises `StaleEpochError` for an older pool."""
        self._check_epoch(epoch)
        assert self._host is not None
        self._host.hold(holds_LE)

    def serve_under(self, version: PlacementVersion, scale: Scale) -> None:
        """Take note of a placement and the scale. Raises `StaleEpochError` for an older pool."""
        self._check_epoch(version.epoch)
        self._epoch, self._scale = version.epoch, scale
        if self._host is not None:
            self._host.place(version)

    def _check_epoch(self, epoch: int) -> None:
        if epoch < self._epoch:
            raise StaleEpochError(f"epoch {epoch} is older than {self._epoch}")
