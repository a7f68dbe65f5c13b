"""How one matrix is stored: which tensors stand for it, of which shapes and dtypes.

Needs no torch. N output width, D input width of the matrix [N, D]. dtypes are the names that
safetensors files use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from experts.tensor_names import Shape

BLOCK = 128
"""Rows and columns that share a scale in FP8-Block."""

ITEM_BYTES: Mapping[str, int] = {
    "F32": 4,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E8M0": 1,
    "I32": 4,
    "I64": 8,
    "U8": 1,
}


class Form(StrEnum):
    """The published forms."""

    FP8 = "fp8"
    """E4M3 codes, one scale per matrix."""
    FP8_DYNAMIC = "fp8-dynamic"
    """E4M3 codes, one scale per output row."""
    FP8_BLOCK = "fp8-block"
    """E4M3 codes, one scale per 128×128 block."""
    W4A16 = "w4a16"
    """Signed 4-bit integers, eight to an int32, one scale per row and group of columns."""
    NVFP4 = "nvfp4"
    """E2M1 codes, two to a byte, E4M3 scales per row and 16 columns; a global scale divides."""
    NVFP4_MODELOPT = "nvfp4-modelopt"
    """As NVFP4 in ModelOpt's names; its global scale multiplies."""


class Role(StrEnum):
    """What a stored tensor is to its matrix."""

    CODES = "codes"
    SCALE = "scale"
    GLOBAL_SCALE = "global scale"
    SHAPE = "shape"


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file, and what it may look like."""

    name: str
    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]

    @property
    def min_bytes(self) -> int:
        """Bytes of its data in the smallest dtype it may have."""
        return math.prod(self.shapes[0]) * min(ITEM_BYTES[dtype] for dtype in self.dtypes)


_SCALE_DTYPES = ("F32", "BF16")
_SCALAR: tuple[Shape, ...] = ((1,), ())
_UNUSED: Mapping[Form, str] = {
    Form.FP8: "input_scale",
    Form.NVFP4: "input_global_scale",
    Form.NVFP4_MODELOPT: "input_scale",
}


@dataclass(frozen=True, slots=True)
class Scheme:
    """One form; `group_size` columns share a scale in the forms that have groups, else 0."""

    form: Form
    group_size: int = 0

    def parts(self, name: str, shape: Shape) -> Mapping[Role, Stored]:
        """Return what is stored for matrix `name` (``….weight``) of `shape` [N, D]."""
        module = name.removesuffix("weight")
        match self.form:
            case Form.FP8 | Form.FP8_DYNAMIC | Form.FP8_BLOCK:
                return self._fp8(module, shape)
            case Form.W4A16:
                return self._w4a16(module, shape)
            case Form.NVFP4 | Form.NVFP4_MODELOPT:
                return self._nvfp4(module, shape)

    def unused_name(self, name: str) -> str | None:
        """Return what may stand beside the parts: the scale of activations, which stay as they are.

        FP8 with dynamic scales and W4A16 have none.
        """
        suffix = _UNUSED.get(self.form)
        return None if suffix is None else name.removesuffix("weight") + suffix

    @property
    def column_multiple(self) -> int:
        """What D must be a multiple of."""
        return math.lcm(self.group_size or 1, 8 if self.form is Form.W4A16 else 1)

    def __str__(self) -> str:
        return f"{self.form} in groups of {self.group_size}" if self.group_size else str(self.form)

    def _fp8(self, module: str, shape: Shape) -> Mapping[Role, Stored]:
        rows, columns = shape
        scales: Mapping[Form, tuple[Shape, ...]] = {
            Form.FP8: _SCALAR,
            Form.FP8_DYNAMIC: ((rows, 1),),
            Form.FP8_BLOCK: ((-(-rows // BLOCK), -(-columns // BLOCK)),),
        }
        # A power of two needs its exponent alone; only blocks are published that way.
        dtypes = (*_SCALE_DTYPES, "F8_E8M0") if self.form is Form.FP8_BLOCK else _SCALE_DTYPES
        return {
            Role.CODES: Stored(f"{module}weight", (shape,), ("F8_E4M3",)),
            Role.SCALE: Stored(f"{module}weight_scale", scales[self.form], dtypes),
        }

    def _w4a16(self, module: str, shape: Shape) -> Mapping[Role, Stored]:
        rows, columns = shape
        scales = (rows, columns // self.group_size)
        return {
            Role.CODES: Stored(f"{module}weight_packed", ((rows, columns // 8),), ("I32",)),
            Role.SCALE: Stored(f"{module}weight_scale", (scales,), _SCALE_DTYPES),
            Role.SHAPE: Stored(f"{module}weight_shape", ((2,),), ("I64", "I32")),
        }

    def _nvfp4(self, module: str, shape: Shape) -> Mapping[Role, Stored]:
        rows, columns = shape
        scales = (rows, columns // self.group_size)
        modelopt = self.form is Form.NVFP4_MODELOPT
        codes = "weight" if modelopt else "weight_packed"
        overall = "weight_scale_2" if modelopt else "weight_global_scale"
        return {
            Role.CODES: Stored(f"{module}{codes}", ((rows, columns // 2),), ("U8",)),
            Role.SCALE: Stored(f"{module}weight_scale", (scales,), ("F8_E4M3",)),
            Role.GLOBAL_SCALE: Stored(f"{module}{overall}", _SCALAR, ("F32",)),
        }
