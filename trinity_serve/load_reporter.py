"""Counts where a rank's rows go, for the pool that balances experts by it.

Works on the engine's thread: counting and handing over need no lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import Tensor

from cluster.load_stats import LoadLE, LoadStats

COUNT_EVERY = 4
"""One step in so many is counted: shares are what matters, and a count costs a layer 2 us."""


class LoadReporter:
    """An observer of a dispatcher; `listener` gets (L, E) the rows counted in each period.

    Without steps nothing is reported: then nothing was asked of experts either.
    """

    def __init__(
        self, stats: LoadStats, period_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.listener: Callable[[LoadLE], object] = lambda rows_LE: None
        self._stats = stats
        self._period_s = period_s
        self._clock = clock
        self._due_s = clock() + period_s
        self._step = 0
        self._counting = False

    def observe(self, moe_layer: int, topk_ids_TK: Tensor) -> None:
        """Count one dispatch; a step begins with MoE layer 0."""
        if moe_layer == 0:
            self._begin_step()
        if self._counting:
            self._stats.observe(moe_layer, topk_ids_TK.numpy())

    def _begin_step(self) -> None:
        self._counting = self._step % COUNT_EVERY == 0
        self._step += 1
        now_s = self._clock()
        if now_s >= self._due_s:
            self._due_s = now_s + self._period_s
            self.listener(self._stats.take())
