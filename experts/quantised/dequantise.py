"""What a quantised matrix means: the reference that every kernel is held to.

Arithmetic in float32, one rounding to the compute dtype at the end; no step depends on the machine.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experts.quantised.fp8 import fp8_block_values, fp8_values
from experts.quantised.matrix import QuantisedMatrix
from experts.quantised.nvfp4 import nvfp4_values
from experts.quantised.packed_int4 import int4_values
from experts.quantised.scheme import BLOCK, Form

_ROWS_AT_A_TIME = BLOCK
"""The float32 values of so few rows stay in the cache, and take next to no memory."""


class NotFiniteError(ValueError):
    """A weight that is no number, or too large for the dtype. Says in which row."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row


def dequantise(matrix: QuantisedMatrix, into: Tensor) -> Tensor:
    """Write the weights into `into` (N, D) float32 or bfloat16 and return it.

    Raises NotFiniteError about the first rows with such a weight (E4M3 has a code for it).
    """
    num_rows = matrix.shape[0]
    for start in range(0, num_rows, _ROWS_AT_A_TIME):
        stop = min(start + _ROWS_AT_A_TIME, num_rows)
        rows = into[start:stop]
        rows.copy_(_values(matrix.rows(start, stop)))
        # The largest of all is no number where one is none; isfinite of all takes 20 times as long.
        if not rows.abs().max().isfinite():
            raise NotFiniteError(start + int((~torch.isfinite(rows)).any(dim=1).nonzero()[0]))
    return into


def _values(matrix: QuantisedMatrix) -> Tensor:
    codes, scale, overall = matrix.codes, matrix.scale, matrix.global_scale
    match matrix.scheme.form:
        case Form.FP8 | Form.FP8_DYNAMIC:
            return fp8_values(codes, scale)
        case Form.FP8_BLOCK:
            return fp8_block_values(codes, scale)
        case Form.W4A16:
            return int4_values(codes, scale, matrix.scheme.group_size)
        case Form.NVFP4:
            assert overall is not None
            return nvfp4_values(codes, scale.float() / overall)
        case Form.NVFP4_MODELOPT:
            assert overall is not None
            return nvfp4_values(codes, scale.float() * overall)
