"""Which experts the rows of one forward pass went to, for requests that want to know.

T rows, L MoE layers, K slots per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from torch import Tensor

from router.dispatcher import Dispatcher
from router.plan import Int64


class RoutingRecorder:
    """Listens to a dispatcher while asked to; costs nothing otherwise.

    `num_layers` and `top_k` are the model's. Used by the rank's one thread.
    """

    def __init__(self, dispatcher: Dispatcher, num_layers: int, top_k: int) -> None:
        self._dispatcher = dispatcher
        self.num_layers = num_layers
        self.top_k = top_k
        self._seen: list[list[Int64]] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Listen to the forward pass inside the context."""
        self._seen = [[] for _ in range(self.num_layers)]
        other = self._dispatcher.observe

        def note(moe_layer: int, topk_ids_TK: Tensor) -> None:
            if other is not None:
                other(moe_layer, topk_ids_TK)
            self._note(moe_layer, topk_ids_TK)

        self._dispatcher.observe = note
        try:
            yield
        finally:
            self._dispatcher.observe = other

    def rows(self) -> Int64:
        """Return (T, L, K) expert ids of the forward pass that was listened to."""
        # Micro-batches of a layer come one after the other, in the order of their rows.
        layers = [np.concatenate(parts) for parts in self._seen]
        return np.stack(layers, axis=1)

    def _note(self, moe_layer: int, topk_ids_TK: Tensor) -> None:
        self._seen[moe_layer].append(topk_ids_TK.numpy().astype(np.int64))
