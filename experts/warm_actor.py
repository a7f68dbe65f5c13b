"""A process with its imports done, which becomes a shard when its pool needs one.

Starting Python and importing torch takes longer than reading a small slice.
"""

from __future__ import annotations

import os
import threading
import time

from cluster.pool_messages import HoldsLE, LaunchOrder, Scale, ShardReport
from cluster.types import PlacementVersion
from experts.actor import WATCH_S, ExpertShard, HostFactory, ShardLife
from experts.orphan import OrphanWatch


class SpareShard:
    """The actor. Once it is a shard it does what `ExpertShard` does."""

    def __init__(self, open_host: HostFactory, life: ShardLife) -> None:
        self._open_host = open_host
        self._life = life
        self._shard: ExpertShard | None = None
        self._orphan = OrphanWatch(life.orphan_grace_s, time.monotonic())
        life.warm()
        threading.Thread(target=self._watch, name="orphan-watch", daemon=True).start()

    def _watch(self) -> None:
        """End the process when no pool asks for it any more; a shard watches for itself."""
        while self._shard is None:
            time.sleep(WATCH_S)
            if self._shard is None and self._orphan.alone(time.monotonic()):
                os._exit(0)

    def become(self, order: LaunchOrder) -> None:
        """Be this shard from now on."""
        assert self._shard is None
        self._shard = ExpertShard(order, self._open_host, self._life)

    def describe(self, seen_revision: int = 0) -> ShardReport | None:
        """Return what the pool has to know; None while it is nothing yet."""
        self._orphan.heard(time.monotonic())
        return None if self._shard is None else self._shard.describe(seen_revision)

    def hold(self, epoch: int, holds_LE: HoldsLE) -> None:
        """See `ExpertShard`."""
        assert self._shard is not None
        self._shard.hold(epoch, holds_LE)

    def serve_under(self, version: PlacementVersion, scale: Scale) -> None:
        """See `ExpertShard`."""
        assert self._shard is not None
        self._shard.serve_under(version, scale)
