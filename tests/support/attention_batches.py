"""One attention batch, and the ways in which it may point outside its cache."""

from __future__ import annotations

import numpy as np

from trinity_serve.model.batch import ForwardBatch, KvView

UNSOUND: dict[str, dict[str, object]] = {
    "slot too large": {"slots": np.arange(25, 65, dtype=np.int64)},
    "slot negative": {"slots": np.arange(-1, 39, dtype=np.int64)},
    "position past the rotary table": {"positions": np.arange(30, 70, dtype=np.int64)},
    "positions fall": {"positions": np.arange(40, dtype=np.int64)[::-1].copy()},
    "rows left over": {"starts": np.array([0, 39], np.int32)},
    "block missing": {"tables": np.array([[0, -1]], np.int32)},
    "block too large": {"tables": np.array([[0, 2]], np.int32)},
    "table too short": {"tables": np.array([[0]], np.int32)},
    "positions of another type": {"positions": np.arange(40, dtype=np.int32)},
}
"""What to change in `attention_batch` for a backend to refuse it."""


def attention_batch(**changes: object) -> tuple[ForwardBatch, KvView]:
    """A sound batch of one sequence of 40 rows, with `changes` to its arrays."""
    arrays: dict[str, object] = {
        "positions": np.arange(40, dtype=np.int64),
        "slots": np.arange(40, dtype=np.int64),
        "starts": np.array([0, 40], np.int32),
        "tables": np.array([[0, 1]], np.int32),
    }
    arrays |= changes
    view = KvView(arrays["tables"], arrays["slots"])  # type: ignore[arg-type]
    positions = arrays["positions"]
    empty = np.zeros(0, np.int64)
    return ForwardBatch(positions, positions, arrays["starts"], view, view, empty), view  # type: ignore[arg-type]
