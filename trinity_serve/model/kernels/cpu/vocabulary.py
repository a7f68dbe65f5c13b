"""Reductions over the vocabulary in C, as the sampler's `VocabularyOps` asks for them.

R rows, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cluster.errors import KernelInputError
from experts.kernels.cpu.library import Status, address
from trinity_serve.model.batch import Int64
from trinity_serve.model.kernels.cpu.library import ModelLibrary

MAX_VOCABULARY = 1 << 18
"""Of a draw: so many of the largest weights do not overflow a sum of int64 (see `src/draw.c`)."""

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


DRAW_SPEC = np.dtype(
    [
        ("temperature", np.float64),
        ("top_p", np.float64),
        ("log_min_p", np.float64),
        ("uniform", np.float64),
        ("top_k", np.int64),
    ]
)
"""struct ts_draw_spec."""


class CpuVocabulary:
    """The largest logit, the log-sum of exponentials and a drawn id of each row."""

    def __init__(self, library: ModelLibrary) -> None:
        self._c = library.c

    def argmax(self, logits_RV: Float32) -> Int64:
        """Return each row's largest logit's id, the lowest of equals; the first NaN if any."""
        logits = np.ascontiguousarray(logits_RV, dtype=np.float32)
        best_R: Int64 = np.empty(len(logits), dtype=np.int64)
        self._c.ts_vocab_argmax(address(logits), *logits.shape, address(best_R))
        return best_R

    def log_sum_exp(self, logits_RV: Float32, max_R: Float32) -> Float64:
        """Return log(sum(exp(row))), given the row's (finite) maximum.

        Terms in fp32, in chunks of 1,024 columns whose sums are added in fp64, in order.
        """
        logits = np.ascontiguousarray(logits_RV, dtype=np.float32)
        peak = np.ascontiguousarray(max_R, dtype=np.float32)
        log_sum_R: Float64 = np.empty(len(logits), dtype=np.float64)
        self._c.ts_vocab_log_sum_exp(
            address(logits), *logits.shape, address(peak), address(log_sum_R)
        )
        return log_sum_R

    def draw(self, logits_RV: Float32, max_R: Float32, specs_R: npt.NDArray[np.void]) -> Int64:
        """Return one id per row; `specs_R` is of DRAW_SPEC, `max_R` finite (see `src/draw.c`)."""
        if logits_RV.shape[1] > MAX_VOCABULARY:
            found = f"{logits_RV.shape[1]} columns"
            raise KernelInputError("logits", found, f"up to {MAX_VOCABULARY}")
        logits = np.ascontiguousarray(logits_RV, dtype=np.float32)
        peak = np.ascontiguousarray(max_R, dtype=np.float32)
        ids_R: Int64 = np.empty(len(logits), dtype=np.int64)
        status = self._c.ts_vocab_draw(
            address(logits), address(peak), address(specs_R), *logits.shape, address(ids_R)
        )
        if status != Status.OK:
            raise MemoryError(f"no scratch memory to draw from {logits.shape[1]} logits")
        return ids_R
