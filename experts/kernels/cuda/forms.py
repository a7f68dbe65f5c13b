"""How an expert lies in device memory: one block of bytes, the same layout for all of a table.

    gate | up | down, and each of them: codes or values | scales | overall scale

every part starting at a multiple of 16 bytes. Pure: it knows no Triton. N output width, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cluster.errors import ConfigError
from experts.kernels.cuda.tiles import BLOCK_K
from experts.quantised.matrix import QuantisedMatrix
from experts.quantised.scheme import BLOCK, Form, Scheme

KernelForm = Literal["plain", "e4m3_row", "e4m3_block", "int4", "e2m1_divided", "e2m1_multiplied"]
"""What the kernels tell apart; one scale per matrix is stored once per row."""

_ALIGNMENT = 16
_FORMS: dict[Form, KernelForm] = {
    Form.FP8: "e4m3_row",
    Form.FP8_DYNAMIC: "e4m3_row",
    Form.FP8_BLOCK: "e4m3_block",
    Form.W4A16: "int4",
    Form.NVFP4: "e2m1_divided",
    Form.NVFP4_MODELOPT: "e2m1_multiplied",
}
_BITS: dict[KernelForm, int] = {
    "e4m3_row": 8,
    "e4m3_block": 8,
    "int4": 4,
    "e2m1_divided": 4,
    "e2m1_multiplied": 4,
}


@dataclass(frozen=True, slots=True)
class StoredForm:
    """One form and the columns (and rows, of blocks) that share a scale."""

    kernel: KernelForm
    group: int = 0

    @classmethod
    def of(cls, scheme: Scheme | None, dtype: torch.dtype) -> StoredForm:
        """Return the form of a scheme, None for plain weights. Raises ConfigError."""
        if scheme is None:
            return cls("plain")
        if scheme.form is Form.W4A16 and scheme.group_size % BLOCK_K[dtype]:
            found, allowed = (
                f"groups of {scheme.group_size} columns",
                f"multiples of {BLOCK_K[dtype]}",
            )
            raise ConfigError("kernels", "cuda", f"W4A16 in {found}", allowed)
        group = BLOCK if scheme.form is Form.FP8_BLOCK else scheme.group_size
        return cls(_FORMS[scheme.form], group)

    def scale_shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """Return the shape of a matrix's scales, (0,) without any."""
        match self.kernel:
            case "plain":
                return (0,)
            case "e4m3_row":
                return (rows, 1)
            case "e4m3_block":
                return (-(-rows // self.group), -(-columns // self.group))
            case _:
                return (rows, columns // self.group)

    @property
    def scale_dtype(self) -> torch.dtype:
        """As the kernels read them: E4M3 where they are as many as a sixteenth of the weights."""
        return torch.float8_e4m3fn if self.kernel.startswith("e2m1") else torch.float32


@dataclass(frozen=True, slots=True)
class MatrixLayout:
    """One matrix [rows, columns]: where its parts are, in bytes from its start."""

    rows: int
    columns: int
    form: StoredForm
    dtype: torch.dtype

    @property
    def _code_bytes(self) -> int:
        bits = _BITS.get(self.form.kernel, 8 * self.dtype.itemsize)
        return self.rows * self.columns * bits // 8

    @property
    def _scale_bytes(self) -> int:
        shape = self.form.scale_shape(self.rows, self.columns)
        return torch.Size(shape).numel() * self.form.scale_dtype.itemsize

    @property
    def _overall_bytes(self) -> int:
        return 4 if self.form.kernel.startswith("e2m1") else 0

    @property
    def scales_at(self) -> int:
        """Where the scales start."""
        return _aligned(self._code_bytes)

    @property
    def overall_at(self) -> int:
        """Where the overall scale is."""
        return self.scales_at + _aligned(self._scale_bytes)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales, without the gaps."""
        return self._code_bytes + self._scale_bytes + self._overall_bytes

    @property
    def span(self) -> int:
        """Bytes with the gaps."""
        return self.overall_at + _aligned(self._overall_bytes)

    def write_plain(self, target: Tensor, weight_ND: Tensor) -> None:
        """Copy a matrix of the table's dtype into its bytes; may still run when it returns."""
        self._write(target, 0, weight_ND)

    def write_quantised(self, target: Tensor, matrix: QuantisedMatrix) -> None:
        """Copy codes and scales into their bytes."""
        self._write(target, 0, matrix.codes)
        shape = self.form.scale_shape(self.rows, self.columns)
        scale = matrix.scale.to(self.form.scale_dtype)
        self._write(target, self.scales_at, scale.expand(shape) if scale.numel() == 1 else scale)
        if matrix.global_scale is not None:
            self._write(target, self.overall_at, matrix.global_scale.float())

    @staticmethod
    def _write(target: Tensor, start: int, part: Tensor) -> None:
        part = part.contiguous()
        place = target[start : start + part.nbytes]
        place.view(part.dtype).view(part.shape).copy_(part, non_blocking=True)


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """Gate and up [width, hidden] and down [hidden, width], one after another."""

    hidden: int
    width: int
    form: StoredForm
    dtype: torch.dtype

    @property
    def gate_up(self) -> MatrixLayout:
        """Of gate, and of up."""
        return MatrixLayout(self.width, self.hidden, self.form, self.dtype)

    @property
    def down(self) -> MatrixLayout:
        """Of down."""
        return MatrixLayout(self.hidden, self.width, self.form, self.dtype)

    @property
    def starts(self) -> tuple[int, int, int]:
        """Of gate, up and down, in bytes from the expert's start."""
        return 0, self.gate_up.span, 2 * self.gate_up.span

    @property
    def nbytes(self) -> int:
        """Bytes of weights of one expert, without the gaps."""
        return 2 * self.gate_up.nbytes + self.down.nbytes

    @property
    def span(self) -> int:
        """Bytes that one expert takes."""
        return 2 * self.gate_up.span + self.down.span


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
