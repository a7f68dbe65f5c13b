"""What is remembered of one dispatched layer until all its rows are back.

T tokens, K slots per token, N = T*K rows, D hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cluster.errors import TrinityError
from router.copies import ShardKey
from router.isolation import Isolation, RowRequests, Slots
from router.plan import Int64, ShardRows

HandleKey = tuple[int, int, int]
"""(step, micro-batch, MoE layer)."""


@dataclass(slots=True)
class Part:
    """Rows asked of one shard in one attempt, and where they belong among the handle's rows."""

    rows: ShardRows
    dest: slice | Int64
    sent_at_s: float
    raced: bool = False
    """Its rows are asked for twice, or there was no budget for that: it is looked at no more."""

    @property
    def dest_N(self) -> Int64:
        """Where its rows belong, one by one."""
        dest = self.dest
        return np.arange(dest.start, dest.stop) if isinstance(dest, slice) else dest

    def slots(self) -> Slots:
        """Return the rows one by one, for another plan."""
        rows = self.rows
        expert_N = np.repeat(rows.expert_ids_G, np.diff(rows.row_offsets_G1)).astype(np.int64)
        token_N = rows.token_idx_N if rows.tokens is None else rows.tokens[rows.token_idx_N]
        return expert_N, token_N.astype(np.int64), self.dest_N


@dataclass(slots=True)
class Handle:
    """One dispatched layer. Pins what is needed to send any of its rows again."""

    key: HandleKey
    hidden_TD: Tensor
    topk_ids_TK: Int64
    row_of_slot_TK: Int64
    rows_ND: Tensor | None = None
    parts: dict[tuple[ShardKey, int], Part] = field(default_factory=dict)
    """Outstanding, by (shard, attempt)."""
    uncovered: list[Slots] = field(default_factory=list)
    """Rows that wait for coverage."""
    attempts: int = 0
    stalled_since_s: float | None = None
    """When the first row was lost or found no shard after the last row that came."""
    last_loss: TrinityError | None = None
    """Why an attempt failed last since then."""
    requests: RowRequests | None = None
    """Whose rows these are; None when the caller cannot say."""
    num_crashes: int = 0
    """Times a shard's stream ended with rows of this handle in flight."""
    isolation: Isolation | None = None
    late_at_s: float = math.inf
    """When to look whether a part is late."""
    filled_N: npt.NDArray[np.bool_] | None = None
    """Which rows have come; kept while rows may come twice."""
    num_non_finite: dict[int, int] = field(default_factory=dict)
    """Times that a request's rows were not finite; all rows together count as request -1."""

    @property
    def incomplete(self) -> bool:
        """Whether rows are still away or wait to be sent."""
        waits = self.isolation is not None and bool(self.isolation.queue)
        return bool(self.parts or self.uncovered or waits)

    def every_slot(self) -> Slots:
        """Return all rows one by one."""
        top_k = self.topk_ids_TK.shape[1]
        token_N = np.arange(self.topk_ids_TK.size) // top_k
        return self.topk_ids_TK.reshape(-1), token_N, self.row_of_slot_TK.reshape(-1)

    def progressed(self) -> None:
        """Take note that rows came."""
        self.stalled_since_s = None
        self.last_loss = None
