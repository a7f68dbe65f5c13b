"""Rows of logits and ways to draw from them, for the suites of every backend that draws."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from trinity_serve.engine.sampling_ops import Float32

temperatures = st.sampled_from([0.05, 0.3, 0.8, 1.0, 1.7, 50.0])
spec_parts = {
    "temperature": temperatures,
    "top_p": st.sampled_from([1.0, 0.95, 0.8, 0.3, 0.01]),
    "top_k": st.sampled_from([0, 1, 2, 50, 700, 10_000]),
    "min_p": st.sampled_from([0.0, 0.06, 0.5, 1.0]),
    "uniform": st.floats(0.0, 1.0, exclude_max=True, allow_subnormal=False),
}


def row(vocab: int, seed: int, spread: float) -> Float32:
    """Normal logits; every third seed has many equals, and ids that are forbidden."""
    rng = np.random.default_rng(seed)
    logits: Float32 = (rng.standard_normal(vocab) * spread).astype(np.float32)
    if seed % 3 == 0:
        logits = np.round(logits)
        logits[rng.integers(0, vocab, vocab // 2)] = -np.inf
        logits[seed % vocab] = 1.0
    return logits
