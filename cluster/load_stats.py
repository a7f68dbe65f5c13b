"""How many rows each expert of each layer was sent lately; old rows count less and less.

Fed by a rank with one `numpy.bincount` per dispatch, merged by the pool. Time is passed in.

L MoE layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

LoadLE = npt.NDArray[np.float64]


@dataclass
class LoadStats:
    """Rows by (layer, expert), halved every `half_life_s`. Used by one thread."""

    num_moe_layers: int
    num_experts: int
    half_life_s: float = 60.0
    _rows_LE: LoadLE = field(init=False)
    _at_s: float = 0.0

    def __post_init__(self) -> None:
        self._rows_LE = np.zeros((self.num_moe_layers, self.num_experts))

    def observe(self, moe_layer: int, topk_ids_TK: npt.NDArray[np.integer]) -> None:
        """Count the rows of one dispatch, as of the last `age`."""
        rows_E = np.bincount(topk_ids_TK.ravel(), minlength=self.num_experts)
        self._rows_LE[moe_layer] += rows_E

    def age(self, now_s: float) -> None:
        """Let what was counted fade up to `now_s`; to be called about once a second."""
        factor = 0.5 ** (max(0.0, now_s - self._at_s) / self.half_life_s)
        self._rows_LE *= factor
        self._at_s = max(self._at_s, now_s)

    def add(self, other_LE: LoadLE) -> None:
        """Merge what another rank counted."""
        self._rows_LE += other_LE

    def take(self) -> LoadLE:
        """Return what was counted since the last take, and start anew; for sending elsewhere."""
        taken_LE, self._rows_LE = self._rows_LE, np.zeros_like(self._rows_LE)
        return taken_LE

    @property
    def rows_LE(self) -> LoadLE:
        """(L, E): decayed rows."""
        return self._rows_LE.copy()
