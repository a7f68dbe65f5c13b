"""Rows that were asked for twice: whoever answers first gives them, and each is written once.

From the first hedge on a handle knows which of its rows have come. N rows, D hidden.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from router.copies import ShardKey
from router.handle import Handle, Part
from router.isolation import Slots, pick

PartKey = tuple[ShardKey, int]


def begin(handle: Handle) -> None:
    """Take note of which rows have come; nothing when that is known."""
    if handle.filled_N is not None:
        return
    handle.filled_N = np.ones(handle.row_of_slot_TK.size, bool)
    for part in handle.parts.values():
        handle.filled_N[part.dest] = False
    for slots in handle.uncovered:
        handle.filled_N[slots[2]] = False


def fill(handle: Handle, part: Part, rows_ND: Tensor) -> list[tuple[PartKey, Part]]:
    """Write those rows of an answer that have not come yet.

    Returns the parts that have nothing left to bring. They are awaited no more.
    """
    assert handle.filled_N is not None
    assert handle.rows_ND is not None
    dest_N = part.dest_N
    new_N = ~handle.filled_N[dest_N]
    handle.rows_ND[torch.from_numpy(dest_N[new_N])] = rows_ND[torch.from_numpy(new_N)]
    handle.filled_N[dest_N] = True
    done = [item for item in handle.parts.items() if handle.filled_N[item[1].dest].all()]
    for key, _ in done:
        del handle.parts[key]
    return done


def unanswered(handle: Handle, slots: Slots, without: Part | None = None) -> Slots:
    """Return those slots whose rows have not come and that no part (but `without`) will bring."""
    if handle.filled_N is None:
        return slots
    brought_N = handle.filled_N.copy()
    for part in handle.parts.values():
        if part is not without:
            brought_N[part.dest] = True
    wanted_N: npt.NDArray[np.bool_] = ~brought_N[slots[2]]
    return slots if wanted_N.all() else pick(slots, wanted_N)


def look_again(handle: Handle, now_s: float) -> None:
    """An attempt is lost whose rows others bring: they may be late themselves."""
    for part in handle.parts.values():
        part.raced = False
    handle.late_at_s = now_s
