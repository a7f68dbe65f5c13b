"""The seam of expert arithmetic: `linear` and `grouped_swiglu`, one signature for every backend.

T tokens, D input width, N output width of a linear or rows of a grouped call, E experts of a layer,
F expert width, G groups (experts hit by this call).

Contract, for every backend: an output row depends on its input row and the weights alone, bit for
bit, whatever the number of rows, their order, and the number of threads.

Packed weights are passed as Any: each backend takes its own form of them and no other.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Int32 = npt.NDArray[np.int32]


class LinearWeight(Protocol):
    """A backend's own form of one matrix."""

    @property
    def in_features(self) -> int:
        """D."""
        ...

    @property
    def out_features(self) -> int:
        """N."""
        ...


class ExpertTable(Protocol):
    """The experts of one MoE layer that this process holds, in the backend's own packed form.

    A dense MLP or a shared expert is a table with one expert.
    """

    @property
    def num_experts(self) -> int:
        """E of the layer, held here or not."""
        ...

    @property
    def hidden_size(self) -> int:
        """D."""
        ...

    @property
    def width(self) -> int:
        """F."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype of weights and rows."""
        ...

    def put(self, expert: int, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> None:
        """Pack or copy one expert (replacing an older one). Checks shapes and dtype."""
        ...

    def drop(self, expert: int) -> None:
        """Free one expert; no error when it is not held."""
        ...

    def holds(self, expert: int) -> bool:
        """Whether the expert is here."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of weights held now."""
        ...


class ExpertKernels(Protocol):
    """One backend: ``reference``, ``cpu`` or ``cuda``."""

    name: str
    bit_class: str
    """Backend, kernel version and instruction class; equal bit classes give equal bits."""
    device: torch.device
    """Where packed weights are held; `put` may copy page-locked memory later."""

    def set_threads(self, num_threads: int) -> None:
        """Spread later calls over this many threads, process-wide; no bit changes by it."""
        ...

    def pack_linear(self, weight_ND: Tensor) -> LinearWeight:
        """Bring a checkpoint matrix [out, in] (float32 or bfloat16) into the backend's form."""
        ...

    def linear(
        self,
        x_TD: Tensor,
        weight: Any,  # noqa: ANN401
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Return x @ Wᵀ as (T, N), accumulated in fp32 and rounded once to `out_dtype`.

        `x_TD` has the weight's dtype, except that float32 weights also take bfloat16 rows (the
        router: exact widening, fp32 arithmetic). `out_dtype` defaults to x's. T may be 0.
        """
        ...

    def new_table(
        self, num_experts: int, hidden_size: int, width: int, dtype: torch.dtype
    ) -> ExpertTable:
        """Return an empty table; memory is taken as experts are put."""
        ...

    def grouped_swiglu(
        self,
        x_TD: Tensor,
        token_idx_N: Int32,
        expert_ids_G: Int32,
        row_offsets_G1: Int32,
        table: Any,  # noqa: ANN401
    ) -> Tensor:
        """Return down(silu(gate(x)) * up(x)) per row, un-reduced, (N, D) in x's dtype.

        Group g is expert `expert_ids_G[g]` over rows row_offsets_G1[g] … row_offsets_G1[g+1]-1;
        row n reads token `token_idx_N[n]` of x. Groups may be empty. silu in fp32; the product
        silu(gate) * up is rounded to x's dtype before `down`. Every expert must be held (checked
        by the caller). N may be 0.
        """
        ...
