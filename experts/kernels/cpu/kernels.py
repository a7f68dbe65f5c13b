"""`ExpertKernels` in C (see `src/`): checks once, then one call without copies.

T tokens, D input width, N output width or rows, F expert width, G groups.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from cluster.errors import ConfigError, KernelInputError
from experts.kernels.base import Int32
from experts.kernels.cpu.library import (
    DTYPE_CODES,
    LIBRARY_DIR,
    ExpertLibrary,
    Status,
    address,
)

_INT32 = np.dtype(np.int32)


class CpuLinear:
    """One matrix [N, D], packed."""

    def __init__(self, library: ExpertLibrary, weight_ND: Tensor) -> None:
        self.out_features, self.in_features = weight_ND.shape
        self.dtype = weight_ND.dtype
        weight_ND = weight_ND.contiguous()
        self.handle: int | None = library.c.ts_matrix_new(
            weight_ND.data_ptr(), self.out_features, self.in_features, DTYPE_CODES[self.dtype]
        )
        if self.handle is None:
            raise MemoryError(f"no memory to pack a matrix of {tuple(weight_ND.shape)}")
        self.nbytes = int(library.c.ts_matrix_bytes(self.handle))
        weakref.finalize(self, library.c.ts_matrix_free, self.handle)


class CpuTable:
    """The experts of one layer, packed, a slot of one slab each."""

    def __init__(
        self,
        library: ExpertLibrary,
        num_experts: int,
        hidden_size: int,
        width: int,
        dtype: torch.dtype,
    ) -> None:
        self.num_experts = num_experts
        self.hidden_size = hidden_size
        self.width = width
        self.dtype = dtype
        self._c = library.c
        self._held: set[int] = set()
        self.handle: int | None = self._c.ts_table_new(
            num_experts, hidden_size, width, _dtype_code(dtype, "an expert table")
        )
        if self.handle is None:
            raise MemoryError(f"no memory for a table of {num_experts} experts")
        weakref.finalize(self, self._c.ts_table_free, self.handle)

    def put(self, expert: int, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> None:
        """Pack and keep one expert (replacing an older copy)."""
        self._check(expert, gate_FD, up_FD, down_DF)
        gate, up, down = gate_FD.contiguous(), up_FD.contiguous(), down_DF.contiguous()
        status = self._c.ts_table_put(
            self.handle, expert, gate.data_ptr(), up.data_ptr(), down.data_ptr()
        )
        if status != Status.OK:
            raise MemoryError(f"no memory for expert {expert}")
        self._held.add(expert)

    def drop(self, expert: int) -> None:
        """Free one expert; no error when it is not held."""
        if expert in self._held:
            self._held.remove(expert)
            self._c.ts_table_drop(self.handle, expert)

    def holds(self, expert: int) -> bool:
        """Whether the expert is here."""
        return expert in self._held

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights held now."""
        return int(self._c.ts_table_bytes(self.handle))

    def _check(self, expert: int, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> None:
        if not 0 <= expert < self.num_experts:
            raise ConfigError("experts", "expert", f"id {expert}", f"0 to {self.num_experts - 1}")
        d, f = self.hidden_size, self.width
        for name, weight, shape in (
            ("gate_proj", gate_FD, (f, d)),
            ("up_proj", up_FD, (f, d)),
            ("down_proj", down_DF, (d, f)),
        ):
            if tuple(weight.shape) != shape or weight.dtype != self.dtype:
                raise ConfigError(
                    f"expert {expert}",
                    name,
                    f"is {tuple(weight.shape)} {weight.dtype}",
                    f"shape {shape} of {self.dtype}",
                )


class CpuExpertKernels:
    """`ExpertKernels` on the CPU's vector units; `threads` and `isa` are the process's own."""

    name = "cpu"
    # The instruction set is no part of it: all paths give the same bits.
    bit_class = "cpu-c/1"
    device = torch.device("cpu")

    def __init__(self, library_dir: Path = LIBRARY_DIR) -> None:
        self.library = ExpertLibrary(library_dir)
        self._linear = self.library.c.ts_linear
        self._grouped_swiglu = self.library.c.ts_grouped_swiglu

    def set_threads(self, num_threads: int) -> None:
        """Spread later calls, the model's ops too, over this many threads."""
        self.library.set_threads(num_threads)

    def pack_linear(self, weight_ND: Tensor) -> CpuLinear:
        """Pack a checkpoint matrix [out, in] (float32 or bfloat16)."""
        _dtype_code(weight_ND.dtype, "weight")
        if weight_ND.dim() != 2 or 0 in weight_ND.shape:
            raise KernelInputError(
                "weight", f"shape {tuple(weight_ND.shape)}", "[out, in], not empty"
            )
        return CpuLinear(self.library, weight_ND)

    def linear(
        self, x_TD: Tensor, weight: CpuLinear, out_dtype: torch.dtype | None = None
    ) -> Tensor:
        """See `ExpertKernels.linear`."""
        x_dtype = x_TD.dtype
        num_rows, in_features = x_TD.shape
        if in_features != weight.in_features or not x_TD.is_contiguous():
            raise KernelInputError(
                "x",
                f"shape {tuple(x_TD.shape)}, strides {x_TD.stride()}",
                f"contiguous [rows, {weight.in_features}]",
            )
        if x_dtype is not weight.dtype and (x_dtype, weight.dtype) != _WIDENED:
            raise KernelInputError("x", f"dtype {x_dtype}", f"{weight.dtype}, as the weight")
        out_dtype = out_dtype or x_dtype
        out_TN = torch.empty((num_rows, weight.out_features), dtype=out_dtype)
        status = self._linear(
            x_TD.data_ptr(),
            DTYPE_CODES[x_dtype],
            num_rows,
            weight.handle,
            out_TN.data_ptr(),
            DTYPE_CODES[out_dtype],
        )
        if status != Status.OK:
            raise MemoryError(f"no scratch memory for a linear of {num_rows} rows")
        return out_TN

    def new_table(
        self, num_experts: int, hidden_size: int, width: int, dtype: torch.dtype
    ) -> CpuTable:
        """Return an empty table; memory is taken as experts are put."""
        return CpuTable(self.library, num_experts, hidden_size, width, dtype)

    def grouped_swiglu(
        self,
        x_TD: Tensor,
        token_idx_N: Int32,
        expert_ids_G: Int32,
        row_offsets_G1: Int32,
        table: CpuTable,
    ) -> Tensor:
        """See `ExpertKernels.grouped_swiglu`."""
        _check_rows(x_TD, table)
        _check_group_arrays(token_idx_N, expert_ids_G, row_offsets_G1)
        num_rows = len(token_idx_N)
        out_ND = torch.empty((num_rows, table.hidden_size), dtype=table.dtype)
        status = self._grouped_swiglu(
            x_TD.data_ptr(),
            x_TD.shape[0],
            num_rows,
            len(expert_ids_G),
            address(token_idx_N),
            address(expert_ids_G),
            address(row_offsets_G1),
            table.handle,
            out_ND.data_ptr(),
        )
        if status != Status.OK:
            _raise_grouped(status, x_TD.shape[0], token_idx_N, expert_ids_G, row_offsets_G1)
        return out_ND


_WIDENED = (torch.bfloat16, torch.float32)
"""Rows and weights of the router: rows are widened, exactly."""


def _dtype_code(dtype: torch.dtype, what: str) -> int:
    if dtype not in DTYPE_CODES:
        raise KernelInputError(what, f"dtype {dtype}", "torch.float32 or torch.bfloat16")
    return DTYPE_CODES[dtype]


def _check_rows(x_TD: Tensor, table: CpuTable) -> None:
    if (
        x_TD.dtype is not table.dtype
        or x_TD.shape[1] != table.hidden_size
        or not x_TD.is_contiguous()
    ):
        raise KernelInputError(
            "x",
            f"shape {tuple(x_TD.shape)}, strides {x_TD.stride()}, {x_TD.dtype}",
            f"contiguous [tokens, {table.hidden_size}] of {table.dtype}",
        )


def _check_group_arrays(token_idx_N: Int32, expert_ids_G: Int32, row_offsets_G1: Int32) -> None:
    for name, array in (
        ("token_idx", token_idx_N),
        ("expert_ids", expert_ids_G),
        ("row_offsets", row_offsets_G1),
    ):
        if array.dtype != _INT32 or array.ndim != 1 or not array.flags.c_contiguous:
            raise KernelInputError(name, f"{array.dtype} {array.shape}", "contiguous int32, 1-d")
    if len(row_offsets_G1) != len(expert_ids_G) + 1:
        expected = f"{len(expert_ids_G) + 1} values, one more than groups"
        raise KernelInputError("row_offsets", f"{len(row_offsets_G1)}", expected)


def _raise_grouped(
    status: int,
    num_tokens: int,
    token_idx_N: Int32,
    expert_ids_G: Int32,
    row_offsets_G1: Int32,
) -> NoReturn:
    if status == Status.NOT_HELD:
        raise KernelInputError("expert_ids", f"{expert_ids_G.tolist()}", "experts that are held")
    if status == Status.NO_MEMORY:
        raise MemoryError("no scratch memory for grouped_swiglu")
    found = (
        f"row_offsets {row_offsets_G1.tolist()}, experts {expert_ids_G.tolist()}, "
        f"largest token {token_idx_N.max(initial=0)}"
    )
    expected = f"rising offsets 0 to {len(token_idx_N)}, known experts, {num_tokens} tokens"
    raise KernelInputError("groups", found, expected)
