"""`VocabularyOps` in C, for a rank whose model kernels are."""

from __future__ import annotations

import math

import numpy as np

from trinity_serve.engine.sampling_ops import DrawSpec, Float32, Float64, sorted_prefix
from trinity_serve.model.batch import Int64
from trinity_serve.model.kernels.cpu.vocabulary import DRAW_SPEC, CpuVocabulary


class CpuVocabularyOps:
    """The meaning is `NumpyVocabularyOps`'; weights are fp32 here, and no row is sorted whole."""

    def __init__(self, vocabulary: CpuVocabulary) -> None:
        self._vocabulary = vocabulary

    def argmax(self, logits_RV: Float32) -> Int64:
        """See `VocabularyOps`."""
        return self._vocabulary.argmax(logits_RV)

    def log_sum_exp(self, logits_RV: Float32, max_R: Float32) -> Float64:
        """See `VocabularyOps`."""
        return self._vocabulary.log_sum_exp(logits_RV, max_R)

    def draw(self, logits_RV: Float32, max_R: Float32, specs: list[DrawSpec]) -> list[int]:
        """See `VocabularyOps`."""
        specs_R = np.array(
            [
                (
                    spec.temperature,
                    spec.top_p,
                    math.log(spec.min_p) if spec.min_p > 0.0 else -math.inf,
                    spec.uniform,
                    spec.top_k,
                )
                for spec in specs
            ],
            dtype=DRAW_SPEC,
        )
        drawn: list[int] = self._vocabulary.draw(logits_RV, max_R, specs_R).tolist()
        return drawn

    def best(self, logits_V: Float32, count: int) -> Int64:
        """See `VocabularyOps`."""
        return sorted_prefix(logits_V, count)[:count]
