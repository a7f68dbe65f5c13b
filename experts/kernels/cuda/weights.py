"""A tile of a weight matrix, read from memory in its stored form and given in compute dtype.

Packed forms are unpacked in registers, to the very values of `experts.quantised.dequantise`: code
times scale in float32, rounded once to the compute dtype. M output rows, K columns.
"""

from __future__ import annotations

import triton.language as tl

from experts.kernels.cuda.numbers import e4m3, jit, rounded

ALIGNMENT = tl.constexpr(16)
"""Bytes: every matrix of an expert starts at a multiple of it (see `table`)."""


@jit
def plain_tile(
    weights: tl.tensor,
    m: tl.tensor,
    start: tl.tensor,
    num_columns: tl.tensor,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
) -> tl.tensor:
    """Return (BLOCK_M, BLOCK_K) of a matrix in compute dtype from column `start` on."""
    k = start + tl.arange(0, BLOCK_K)
    places = weights + m[:, None] * num_columns + k[None, :]
    if EVEN_K:  # noqa: SIM108
        tile = tl.load(places)
    else:
        tile = tl.load(places, mask=k[None, :] < num_columns, other=0)
    return tile


@jit
def e4m3_tile(
    codes: tl.tensor,
    scales: tl.tensor,
    m: tl.tensor,
    start: tl.tensor,
    num_columns: tl.tensor,
    SCALE_ROWS: tl.constexpr,
    SCALE_COLUMNS: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
) -> tl.tensor:
    """Return (BLOCK_M, BLOCK_K): float32 scales per SCALE_ROWS rows and SCALE_COLUMNS columns.

    SCALE_COLUMNS 0: one scale for all columns.
    """
    tile = plain_tile(codes, m, start, num_columns, BLOCK_K, EVEN_K)
    if SCALE_COLUMNS == 0:
        scale = tl.load(scales + m // SCALE_ROWS)
    else:
        per_row = (num_columns + (SCALE_COLUMNS - 1)) // SCALE_COLUMNS
        scale = tl.load(scales + (m // SCALE_ROWS) * per_row + start // SCALE_COLUMNS)
    return rounded(e4m3(tile) * scale[:, None], DTYPE)


@jit
def unpacked_int4(words: tl.tensor) -> tl.tensor:
    """Return (M, 8 W) int32: nibble i of word w, counted from the lowest, is column 8w+i."""
    even = tl.interleave(
        tl.interleave(words & 0xF, (words >> 16) & 0xF),
        tl.interleave((words >> 8) & 0xF, (words >> 24) & 0xF),
    )
    odd = tl.interleave(
        tl.interleave((words >> 4) & 0xF, (words >> 20) & 0xF),
        tl.interleave((words >> 12) & 0xF, (words >> 28) & 0xF),
    )
    return tl.interleave(even, odd)


@jit
def int4_tile(
    words: tl.tensor,
    scales: tl.tensor,
    m: tl.tensor,
    start: tl.tensor,
    num_columns: tl.tensor,
    GROUP: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
) -> tl.tensor:
    """Return (BLOCK_M, BLOCK_K) of nibbles, 8 more than what they mean, eight to an int32 word.

    GROUP columns, a multiple of BLOCK_K, share a float32 scale.
    """
    packed = plain_tile(words, m, start // 8, num_columns // 8, BLOCK_K // 8, EVEN_K)
    levels = (unpacked_int4(packed) - 8).to(tl.float32)
    scale = tl.load(scales + m * (num_columns // GROUP) + start // GROUP)
    # Padding beyond the last column is -8 times a scale: what it meets in x is 0.
    return rounded(levels * scale[:, None], DTYPE)


@jit
def e2m1_tile(
    codes: tl.tensor,
    scales: tl.tensor,
    overall: tl.tensor,
    m: tl.tensor,
    start: tl.tensor,
    num_columns: tl.tensor,
    DIVIDES: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
) -> tl.tensor:
    """Return (BLOCK_M, BLOCK_K) of E2M1 codes, two to a byte, with E4M3 scales of 16 columns.

    The effective scale is E4M3 times the overall scale, or divided by it (DIVIDES), in float32.
    """
    pairs = plain_tile(codes, m, start // 2, num_columns // 2, BLOCK_K // 2, EVEN_K).to(tl.int32)
    code = tl.interleave(pairs & 0xF, pairs >> 4)
    # Exponent and mantissa of E2M1, moved up, are a float32 that is 2^126 too small; its one
    # denormal would be 2^-127, so the value is made of integers: 2, 3, 4, 6, ... halves.
    mantissa = code & 1
    exponent = (code >> 1) & 3
    halves = tl.where(exponent == 0, mantissa, (2 + mantissa) << (tl.maximum(exponent, 1) - 1))
    value = halves.to(tl.float32) * 0.5
    value = tl.where((code & 8) != 0, -value, value)
    by_group = plain_tile(scales, m, start // 16, num_columns // 16, BLOCK_K // 16, EVEN_K)
    scale = e4m3(by_group)
    if DIVIDES:
        scale = tl.div_rn(scale, tl.broadcast_to(overall, (BLOCK_M, BLOCK_K // 16)))
    else:
        scale = scale * overall
    grouped = tl.reshape(value, (BLOCK_M, BLOCK_K // 16, 16)) * scale[:, :, None]
    return rounded(tl.reshape(grouped, (BLOCK_M, BLOCK_K)), DTYPE)


@jit
def matrix_tile(
    matrix: tl.tensor,
    scales_at: tl.tensor,
    overall_at: tl.tensor,
    m: tl.tensor,
    start: tl.tensor,
    num_columns: tl.tensor,
    FORM: tl.constexpr,
    GROUP: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
) -> tl.tensor:
    """Return (BLOCK_M, BLOCK_K) of the matrix at address `matrix` (int64), stored as FORM.

    `scales_at` and `overall_at` are bytes from there; FORM is a value of `forms.StoredForm`.
    """
    scales = tl.multiple_of((matrix + scales_at).to(tl.pointer_type(tl.float32)), ALIGNMENT)
    if FORM == "plain":
        values = tl.multiple_of(matrix.to(tl.pointer_type(DTYPE)), ALIGNMENT)
        tile = plain_tile(values, m, start, num_columns, BLOCK_K, EVEN_K)
    elif FORM == "e4m3_row":
        codes = tl.multiple_of(matrix.to(tl.pointer_type(tl.uint8)), ALIGNMENT)
        tile = e4m3_tile(codes, scales, m, start, num_columns, 1, 0, DTYPE, BLOCK_K, EVEN_K)
    elif FORM == "e4m3_block":
        codes = tl.multiple_of(matrix.to(tl.pointer_type(tl.uint8)), ALIGNMENT)
        tile = e4m3_tile(codes, scales, m, start, num_columns, GROUP, GROUP, DTYPE, BLOCK_K, EVEN_K)
    elif FORM == "int4":
        words = tl.multiple_of(matrix.to(tl.pointer_type(tl.int32)), ALIGNMENT)
        tile = int4_tile(words, scales, m, start, num_columns, GROUP, DTYPE, BLOCK_K, EVEN_K)
    else:
        codes = tl.multiple_of(matrix.to(tl.pointer_type(tl.uint8)), ALIGNMENT)
        small = tl.multiple_of((matrix + scales_at).to(tl.pointer_type(tl.uint8)), ALIGNMENT)
        overall = tl.load((matrix + overall_at).to(tl.pointer_type(tl.float32)))
        divides: tl.constexpr = FORM == "e2m1_divided"
        tile = e2m1_tile(
            codes,
            small,
            overall,
            m,
            start,
            num_columns,
            divides,
            DTYPE,
            BLOCK_M,
            BLOCK_K,
            EVEN_K,
        )
    return tile
