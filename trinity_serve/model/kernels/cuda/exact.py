"""Arithmetic with the same bits on a GPU, in the interpreter, and (where it says so) in C.

Kernels of this package are launched with `enable_fp_fusion=False`: a product and a sum are rounded
apart unless they say `fused`.
"""

from __future__ import annotations

import triton.language as tl

from experts.kernels.cuda.numbers import INTERPRETED, jit

# exp: x = n ln2 + r, a polynomial on |r| <= ln2 / 2. The coefficients of experts' src/vec.h.
_LOG2_E = tl.constexpr(float.fromhex("0x1.715476p+0"))
_MINUS_LN2_HIGH = tl.constexpr(float.fromhex("-0x1.62e4p-1"))
_MINUS_LN2_LOW = tl.constexpr(float.fromhex("-0x1.7f7d1cp-20"))
_C7 = tl.constexpr(float.fromhex("0x1.a15318p-13"))
_C6 = tl.constexpr(float.fromhex("0x1.6d44b6p-10"))
_C5 = tl.constexpr(float.fromhex("0x1.1110c6p-7"))
_C4 = tl.constexpr(float.fromhex("0x1.5554e8p-5"))
_C3 = tl.constexpr(float.fromhex("0x1.555556p-3"))
_ROUND_TO_INT = tl.constexpr(12582912.0)
"""1.5 * 2^23: what is added to it is rounded to an integer, and lies in its low bits."""


@jit
def fused(a: tl.tensor, b: tl.tensor, c: tl.tensor) -> tl.tensor:
    """Return a * b + c, float32, rounded once.

    The interpreter's own fma rounds twice; float64 holds the product exactly. (Its sum is rounded
    to 53 and then to 24 bits, which differs from one rounding about once in 2^28.)
    """
    if INTERPRETED:
        result = (a.to(tl.float64) * b.to(tl.float64) + c.to(tl.float64)).to(tl.float32)
    else:
        result = tl.fma(a, b, c)
    return result


@jit
def _plus(a: tl.tensor, b: tl.tensor, C: tl.constexpr) -> tl.tensor:
    return fused(a, b, tl.full(a.shape, C, tl.float32))


@jit
def _times_plus(a: tl.tensor, B: tl.constexpr, c: tl.tensor) -> tl.tensor:
    return fused(a, tl.full(a.shape, B, tl.float32), c)


@jit
def exp_as_in_c(x: tl.tensor) -> tl.tensor:
    """Return exp(x) for x <= 0 with the bits of the C kernels' `vf_exp`; 0 below -87."""
    clamped = tl.maximum(x, -87.0)
    shifted = _times_plus(clamped, _LOG2_E, tl.full(x.shape, _ROUND_TO_INT, tl.float32))
    n = shifted - _ROUND_TO_INT
    r = _times_plus(n, _MINUS_LN2_HIGH, clamped)
    r = _times_plus(n, _MINUS_LN2_LOW, r)
    p = _times_plus(r, _C7, tl.full(x.shape, _C6, tl.float32))
    p = _plus(p, r, _C5)
    p = _plus(p, r, _C4)
    p = _plus(p, r, _C3)
    p = _plus(p, r, 0.5)
    p = fused(r * r, p, r) + 1.0
    exponent = shifted.to(tl.int32, bitcast=True) << 23
    power = (p.to(tl.int32, bitcast=True) + exponent).to(tl.float32, bitcast=True)
    return tl.where(x < -87.0, 0.0, power)


@jit
def sigmoid(x: tl.tensor) -> tl.tensor:
    """Return 1 / (1 + exp(-x)), float32, with a correctly rounded division."""
    one = tl.full(x.shape, 1.0, tl.float32)
    return tl.div_rn(one, one + tl.exp(-x))
