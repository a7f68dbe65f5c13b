"""Numbers in Triton that mean the same compiled and interpreted.

The interpreter (seen in Triton 3.8) cuts off when it converts float32 to bfloat16, takes bfloat16
operands of `tl.dot` for integers, and has its own idea of E4M3's NaN. So there the same values are
worked out on their bits; compiled, the machine's own conversions do it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Whether `TRITON_INTERPRET=1` was set when Triton was imported."""


def jit(fn: Callable[..., object]) -> Any:  # noqa: ANN401
    """`triton.jit`, with a type."""
    return triton.jit(fn)


def jit_without(*names: str) -> Callable[[Callable[..., object]], Any]:
    """`triton.jit` that compiles no variants for special values (1, multiples of 16) of `names`.

    For counts that change from call to call.
    """
    return lambda fn: triton.jit(fn, do_not_specialize=list(names))


@jit
def widened(x: tl.tensor) -> tl.tensor:
    """Return bfloat16 or float32 as float32, exactly."""
    if INTERPRETED:
        if x.dtype == tl.bfloat16:
            high = x.to(tl.uint16, bitcast=True).to(tl.int32) << 16
            result = high.to(tl.float32, bitcast=True)
        else:
            result = x.to(tl.float32)
    else:
        result = x.to(tl.float32)
    return result


@jit
def rounded(x: tl.tensor, DTYPE: tl.constexpr) -> tl.tensor:
    """Return float32 rounded once to DTYPE, to nearest even."""
    if INTERPRETED:
        if tl.bfloat16 == DTYPE:
            bits = x.to(tl.int32, bitcast=True)
            up = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
            up = tl.where(
                (bits & 0x7FFFFFFF) > 0x7F800000, (bits >> 16) | 0x40, up
            )  # NaN stays NaN
            result = up.to(tl.int16).to(tl.bfloat16, bitcast=True)
        else:
            result = x.to(DTYPE)
    else:
        result = x.to(DTYPE)
    return result


@jit
def dot(a: tl.tensor, b: tl.tensor, acc: tl.tensor) -> tl.tensor:
    """Return acc + a @ b in float32; float32 operands are never cut to TF32."""
    if INTERPRETED:
        result = tl.dot(widened(a), widened(b), acc, input_precision="ieee")
    else:
        result = tl.dot(a, b, acc, input_precision="ieee")
    return result


@jit
def e4m3(codes: tl.tensor) -> tl.tensor:
    """Return the float32 values of E4M3 codes (uint8), exactly."""
    if INTERPRETED:
        code = codes.to(tl.int32)
        # Exponent and mantissa, moved up, are a float32 that is 2^120 too small, denormals too.
        bits = ((code & 0x80) << 24) | ((code & 0x7F) << 20)
        scaled = bits.to(tl.float32, bitcast=True) * 1.329227995784916e36
        result = tl.where((code & 0x7F) == 0x7F, float("nan"), scaled)
    else:
        result = codes.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    return result


@jit
def silu(x: tl.tensor) -> tl.tensor:
    """Return x * sigmoid(x), float32."""
    return x * (1.0 / (1.0 + tl.exp(-x)))
