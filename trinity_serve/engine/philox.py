"""A counter-based random generator: a pure function of (seed, choice, output index).

No state, so neither the batch, nor a preemption, nor a replay on another machine can change a draw.

Source: Philox-4x32-10 of Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011; checked against the authors' known-answer vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]
Float64 = npt.NDArray[np.float64]

_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))


def philox_4x32(counter_4N: UInt64, key_2N: UInt64) -> UInt64:
    """Return the (4, N) random 32-bit words of N counters under N keys (words in uint64)."""
    c0, c1, c2, c3 = counter_4N
    k0, k1 = key_2N
    for _ in range(_ROUNDS):
        product_0, product_1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product_1 >> _SHIFT) ^ c1 ^ k0,
            product_1 & _LOW,
            (product_0 >> _SHIFT) ^ c3 ^ k1,
            product_0 & _LOW,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return np.stack([c0, c1, c2, c3])


def uniforms(seeds: Sequence[int], choices: Sequence[int], output_idx: Sequence[int]) -> Float64:
    """Return one uniform in [0, 1) per (seed, choice, output index), of 53 random bits.

    The key is the seed's low 64 bits; the counter is (index low, index high, choice, 0).
    """
    seed_N = np.array([seed & 0xFFFFFFFF_FFFFFFFF for seed in seeds], np.uint64)
    index_N = np.array(output_idx, np.uint64)
    choice_N = np.array(choices, np.uint64) & _LOW
    counter_4N = np.stack([index_N & _LOW, index_N >> _SHIFT, choice_N, np.zeros_like(index_N)])
    words_4N = philox_4x32(counter_4N, np.stack([seed_N & _LOW, seed_N >> _SHIFT]))
    high_N, low_N = words_4N[0] >> np.uint64(5), words_4N[1] >> np.uint64(6)
    uniform_N: Float64 = (high_N * 67108864.0 + low_N) / 9007199254740992.0
    return uniform_N
