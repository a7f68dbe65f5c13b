"""The experts of one layer on a device: a block of memory each, and a table of their addresses.

A table of addresses, not one slab, so that it needs no capacity beforehand: an expert that comes
takes its own memory, one that goes gives it back, none is ever moved, and a CUDA graph that reads
the table stays valid. torch's allocator orders re-use of memory after the kernels on this stream.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from cluster.errors import ConfigError
from experts.kernels.cuda.forms import ExpertLayout, MatrixLayout, StoredForm
from experts.kernels.reference import check_expert
from experts.quantised.matrix import QuantisedMatrix
from experts.quantised.scheme import Scheme

_T = TypeVar("_T")


class CudaTable:
    """`ExpertTable` on a device; with a scheme, its experts stay in their stored form."""

    def __init__(
        self,
        num_experts: int,
        layout: ExpertLayout,
        scheme: Scheme | None,
        device: torch.device,
    ) -> None:
        self.num_experts = num_experts
        self.layout = layout
        self.scheme = scheme
        self.addresses_E = torch.zeros(num_experts, dtype=torch.int64, device=device)
        """Where each expert is in device memory, 0 when it is not held."""
        self._blocks: dict[int, Tensor] = {}

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.layout.hidden

    @property
    def width(self) -> int:
        """F."""
        return self.layout.width

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype."""
        return self.layout.dtype

    def put(self, expert: int, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> None:
        """Copy one expert to the device, replacing an older copy; ordered on the current stream."""
        if self.scheme is not None:
            raise ConfigError(
                "experts", "table", "plain weights", f"weights stored as {self.scheme}"
            )
        check_expert(self, expert, gate_FD, up_FD, down_DF)
        block = self._block(expert)
        for layout, start, weight in self._parts((gate_FD, up_FD, down_DF)):
            layout.write_plain(block[start : start + layout.span], weight)

    def put_quantised(
        self, expert: int, gate: QuantisedMatrix, up: QuantisedMatrix, down: QuantisedMatrix
    ) -> None:
        """Copy one expert in its stored form. Raises ConfigError when it is of another form."""
        matrices = (gate, up, down)
        shapes = (self.layout.gate_up, self.layout.gate_up, self.layout.down)
        if not 0 <= expert < self.num_experts:
            raise ConfigError("experts", "expert", f"id {expert}", f"0 to {self.num_experts - 1}")
        for matrix, layout in zip(matrices, shapes, strict=True):
            shape = (layout.rows, layout.columns)
            if matrix.scheme != self.scheme or tuple(matrix.shape) != shape:
                found = f"{matrix.shape} as {matrix.scheme}"
                raise ConfigError(f"expert {expert}", "matrix", found, f"{shape} as {self.scheme}")
        block = self._block(expert)
        for layout, start, quantised in self._parts(matrices):
            layout.write_quantised(block[start : start + layout.span], quantised)

    def drop(self, expert: int) -> None:
        """Free one expert; no error when it is not held."""
        if self._blocks.pop(expert, None) is not None:
            self.addresses_E[expert].fill_(0)

    def holds(self, expert: int) -> bool:
        """Whether the expert is here."""
        return expert in self._blocks

    @property
    def nbytes(self) -> int:
        """Bytes of weights held now."""
        return len(self._blocks) * self.layout.nbytes

    def _block(self, expert: int) -> Tensor:
        if expert not in self._blocks:
            block = torch.empty(self.layout.span, dtype=torch.uint8, device=self.addresses_E.device)
            self._blocks[expert] = block
            self.addresses_E[expert].fill_(block.data_ptr())
        return self._blocks[expert]

    def _parts(self, parts: tuple[_T, _T, _T]) -> list[tuple[MatrixLayout, int, _T]]:
        layouts = (self.layout.gate_up, self.layout.gate_up, self.layout.down)
        return list(zip(layouts, self.layout.starts, parts, strict=True))


def new_cuda_table(
    num_experts: int,
    shape: tuple[int, int],
    dtype: torch.dtype,
    scheme: Scheme | None,
    device: torch.device,
) -> CudaTable:
    """Return an empty table for experts of `shape` (hidden, width). Raises ConfigError."""
    form = StoredForm.of(scheme, dtype)
    return CudaTable(num_experts, ExpertLayout(*shape, form, dtype), scheme, device)
