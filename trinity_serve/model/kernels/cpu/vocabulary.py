"""Reductions over the vocabulary in C, as the sampler's `VocabularyOps` asks for them.

R rows, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from experts.kernels.cpu.library import address
from trinity_serve.model.batch import Int64
from trinity_serve.model.kernels.cpu.library import ModelLibrary

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


class CpuVocabulary:
    """The largest logit and the log-sum of exponentials of each row."""

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
