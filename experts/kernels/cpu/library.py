"""Load the compiled kernels and give their functions types.

The library holds process-wide state: one thread pool, its scratch memory and the instruction set
in use. Calls from several threads are safe; they take turns.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from cluster.errors import ConfigError

LIBRARY_DIR = Path(__file__).parent
LIBRARY_NAME = "_experts.so"

DTYPE_CODES: dict[torch.dtype, int] = {torch.float32: 0, torch.bfloat16: 1}

Signatures = dict[str, tuple[type | None, tuple[type, ...]]]
"""Per function its result and its arguments, as ctypes types."""

_POINTER = ctypes.c_void_p
_LONG = ctypes.c_long
_INT = ctypes.c_int
_SIGNATURES: Signatures = {
    "ts_linear": (_INT, (_POINTER, _INT, _LONG, _POINTER, _POINTER, _INT)),
    "ts_grouped_swiglu": (
        _INT,
        (_POINTER, _LONG, _LONG, _LONG, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER),
    ),
    "ts_matrix_new": (_POINTER, (_POINTER, _LONG, _LONG, _INT)),
    "ts_matrix_free": (None, (_POINTER,)),
    "ts_matrix_bytes": (ctypes.c_size_t, (_POINTER,)),
    "ts_table_new": (_POINTER, (_LONG, _LONG, _LONG, _INT)),
    "ts_table_free": (None, (_POINTER,)),
    "ts_table_put": (_INT, (_POINTER, _LONG, _POINTER, _POINTER, _POINTER)),
    "ts_table_drop": (None, (_POINTER, _LONG)),
    "ts_table_bytes": (ctypes.c_size_t, (_POINTER,)),
    "ts_set_threads": (_INT, (_INT,)),
    "ts_threads": (_INT, ()),
    "ts_set_isa": (_INT, (_INT,)),
    "ts_best_isa": (_INT, ()),
    "ts_current_isa": (_INT, ()),
    "ts_get_runtime": (_POINTER, ()),
    "ts_read_seconds": (ctypes.c_double, (ctypes.c_size_t, _LONG)),
    "ts_peak_flops": (ctypes.c_double, (_LONG, _INT)),
}


class Status(IntEnum):
    """What an op returns."""

    OK = 0
    NO_MEMORY = -1
    NOT_HELD = -2
    BAD_INDEX = -3
    NOT_FINITE = -4


class Isa(IntEnum):
    """Instruction sets the kernels are compiled for; all give the same bits."""

    PORTABLE = 0
    AVX2 = 1
    AVX512_BF16 = 2


def address(array: npt.NDArray[np.generic]) -> int:
    """Return where a numpy array's data is; `array.ctypes.data` costs four times as much."""
    if array.size and array.flags.writeable:
        return ctypes.addressof(ctypes.c_char.from_buffer(array.data))
    return array.ctypes.data


def open_library(path: Path, signatures: Signatures) -> ctypes.CDLL:
    """Load a shared object and type its functions. Raises ConfigError when it is not there."""
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in signatures.items():
            function = getattr(library, name)
            function.restype = result
            function.argtypes = arguments
    except (OSError, AttributeError) as error:
        raise ConfigError(
            "kernels",
            "cpu",
            f"the compiled kernels cannot be loaded ({error})",
            "kernels: reference, or an installation with gcc at hand (make setup)",
        ) from error
    return library


class ExpertLibrary:
    """The expert ops' shared object, with the process's kernel threads and instruction set."""

    def __init__(self, library_dir: Path = LIBRARY_DIR) -> None:
        self.c = open_library(library_dir / LIBRARY_NAME, _SIGNATURES)

    @property
    def best_isa(self) -> Isa:
        """The best instruction set of this machine."""
        return Isa(self.c.ts_best_isa())

    @property
    def isa(self) -> Isa:
        """The one in use."""
        return Isa(self.c.ts_current_isa())

    def set_isa(self, isa: Isa) -> None:
        """Use `isa` from the next call on. Raises ConfigError when this machine lacks it."""
        if self.c.ts_set_isa(int(isa)) != isa:
            raise ConfigError(
                "kernels", "isa", f"no {isa.name} here", f"up to {self.best_isa.name}"
            )

    @property
    def num_threads(self) -> int:
        """Threads an op is spread over, the caller's among them."""
        return int(self.c.ts_threads())

    def set_threads(self, num_threads: int) -> None:
        """Spread later calls over `num_threads` threads; outputs do not change by a bit."""
        if not 1 <= num_threads <= 256:
            raise ConfigError("kernels", "threads", f"is {num_threads}", "1 to 256")
        self.c.ts_set_threads(num_threads)
