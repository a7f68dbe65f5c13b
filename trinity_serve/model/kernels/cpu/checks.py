"""Shape and type checks of the C backend: whatever C takes as an address was seen here."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cluster.errors import KernelInputError
from experts.kernels.cpu.library import DTYPE_CODES
from trinity_serve.model.batch import Int64

INT32 = np.dtype(np.int32)
INT64 = np.dtype(np.int64)


def check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raise KernelInputError unless `tensor` is contiguous, of this shape and type."""
    if tensor.shape != shape or tensor.dtype is not dtype or not tensor.is_contiguous():
        raise KernelInputError(
            name,
            f"shape {tuple(tensor.shape)}, strides {tensor.stride()}, {tensor.dtype}",
            f"contiguous {tuple(shape)} of {dtype}",
        )
    if dtype not in DTYPE_CODES:
        raise KernelInputError(name, f"{dtype}", "torch.float32 or torch.bfloat16")


def check_array(
    name: str,
    array: npt.NDArray[np.int32] | Int64,
    shape: tuple[int, ...],
    dtype: np.dtype[np.int32] | np.dtype[np.int64],
) -> None:
    """Raise KernelInputError unless `array` is contiguous, of this shape and type."""
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
        raise KernelInputError(
            name, f"{array.dtype} of {array.shape}", f"contiguous {dtype} of {shape}"
        )
