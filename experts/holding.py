"""Brings a store to what its shard is told to hold, while it serves.

A thread of its own reads one expert at a time; the shard's loop puts and frees between products,
so that no product ever sees a table change. What is wanted is absolute: told twice, it changes
nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from cluster.errors import TrinityError
from cluster.pool_messages import HoldsLE
from experts.checkpoint import Checkpoint, ExpertTensors
from experts.store import ExpertStore, checksum_of

RETRY_S = 2.0


class LiveHolding:
    """What is wanted, and the one expert that has been read and not been put yet.

    `hold` may be called by any thread, `apply` by the loop's alone; `run` is the reading thread.
    """

    def __init__(
        self, store: ExpertStore, checkpoint: Checkpoint, wake_loop: Callable[[], None]
    ) -> None:
        self.revision = 1
        """Grows with every change of the store; written by `apply` alone."""
        self.problem = ""
        self._store = store
        self._checkpoint = checkpoint
        self._wake_loop = wake_loop
        self._changed = threading.Condition()  # guards all below
        self._wanted_LE: HoldsLE = store.sums_LE != 0
        self._read: tuple[int, int, ExpertTensors, int] | None = None
        self._stopping = False

    def hold(self, holds_LE: HoldsLE) -> None:
        """Hold these experts and no others, as soon as may be; returns at once."""
        with self._changed:
            self._wanted_LE = holds_LE
            self._changed.notify_all()
        self._wake_loop()

    def stop(self) -> None:
        """End `run`."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def run(self) -> None:
        """Read what is wanted and missing, until `stop`. A read that fails is tried again."""
        while (place := self._next_missing()) is not None:
            layer, expert = place
            try:
                weights = self._checkpoint.expert(self._store.config.moe_layers[layer], expert)
                total = checksum_of(weights)
            except TrinityError as error:
                with self._changed:
                    self.problem = str(error)
                    self._changed.wait(RETRY_S)
                continue
            with self._changed:
                self._read, self.problem = (layer, expert, weights, total), ""
            del weights  # the bound: one expert beyond what is held
            self._wake_loop()

    def _next_missing(self) -> tuple[int, int] | None:
        with self._changed:
            while not self._stopping:
                missing = np.argwhere(self._wanted_LE & (self._store.sums_LE == 0))
                if self._read is None and len(missing):
                    return int(missing[0][0]), int(missing[0][1])
                self._changed.wait()
        return None

    def apply(self) -> bool:
        """Free what is not wanted, put what has been read; return whether the store changed."""
        with self._changed:
            wanted_LE, read = self._wanted_LE, self._read
        freed = np.argwhere((self._store.sums_LE != 0) & ~wanted_LE)
        if read is None and not len(freed):
            return False
        for layer, expert in freed.tolist():
            self._store.drop(layer, expert)
        if read is not None:
            layer, expert, weights, total = read
            if wanted_LE[layer, expert]:
                self._store.put(layer, expert, weights, total)
        with self._changed:
            self.revision += 1
            self._read = None
            self._changed.notify_all()
        return True
