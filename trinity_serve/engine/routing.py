"""Routed experts of a request, row by row as its context is computed.

R rows, L MoE layers, K slots per token.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

from cluster.errors import InvalidRequestError
from trinity_serve.engine.request import GenerationRequest, RoutedExperts
from trinity_serve.model.batch import Int64

MAX_REPORT_BYTES = 8 << 20
"""The prompt's part of a report goes out in one event."""


class RoutingRecorder(Protocol):
    """Records the routing of one forward pass."""

    num_layers: int
    top_k: int

    def recording(self) -> AbstractContextManager[None]:
        """Listen to the forward pass inside the context."""
        ...

    def rows(self) -> Int64:
        """Return (T, L, K) expert ids of the forward pass that was listened to."""
        ...


class RoutedRows:
    """What one sequence's rows went to, from position `start` on, each told once."""

    def __init__(self, start: int) -> None:
        self._next = start
        """The first position that was not taken yet."""
        self._untold: list[Int64] = []

    def add(self, start: int, ids_RLK: Int64) -> None:
        """Take the rows from position `start` on; rows that are computed again change nothing."""
        new_RLK = ids_RLK[max(0, self._next - start) :]
        if len(new_RLK):
            self._untold.append(new_RLK)
            self._next = start + len(ids_RLK)

    def take(self) -> RoutedExperts | None:
        """Return what was not told yet."""
        if not self._untold:
            return None
        rows_RLK = np.concatenate(self._untold)
        self._untold.clear()
        _, num_layers, top_k = rows_RLK.shape
        return RoutedExperts(num_layers, top_k, rows_RLK.astype("<u2").tobytes())


def check_report(request: GenerationRequest, recorder: RoutingRecorder | None) -> None:
    """Raise `InvalidRequestError` when a report cannot be made, or would be too large."""
    start = request.params.routed_experts_from
    if start is None:
        return
    if recorder is None:
        message = "return_routed_experts is not supported by this engine."
        raise InvalidRequestError("return_routed_experts", message)
    num_rows = max(0, len(request.prompt_ids) + request.params.max_tokens - start)
    num_bytes = num_rows * recorder.num_layers * recorder.top_k * 2
    if num_bytes > MAX_REPORT_BYTES:
        limit = MAX_REPORT_BYTES // (recorder.num_layers * recorder.top_k * 2)
        message = (
            f"Routed experts of up to {num_rows} tokens were asked for; allowed: {limit}. "
            f"Raise routed_experts_prompt_start or lower max_tokens."
        )
        raise InvalidRequestError("return_routed_experts", message)
