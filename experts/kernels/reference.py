"""The plain meaning of the expert ops in torch, and the backend that serves without a compiler.

torch's own CPU `linear` gives a row other bits in other batch sizes, but not when the number of
rows is fixed (DECISIONS.md). So every product runs in tiles of exactly ROW_TILE rows, the last one
padded.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.errors import ConfigError
from experts.kernels.base import ExpertTable, Int32

ROW_TILE = 16


def tiled_linear(x_TD: Tensor, weight_ND: Tensor) -> Tensor:
    """Return x @ Wᵀ (T, N) in tiles of ROW_TILE rows; both operands have one dtype."""
    num_rows = x_TD.shape[0]
    if num_rows == 0:
        return x_TD.new_empty((0, weight_ND.shape[0]))
    padded_PD = F.pad(x_TD, (0, 0, 0, -num_rows % ROW_TILE))
    tiles = [F.linear(tile, weight_ND) for tile in padded_PD.view(-1, ROW_TILE, x_TD.shape[1])]
    return torch.cat(tiles)[:num_rows]


def sigmoid(x: Tensor) -> Tensor:
    """Return 1 / (1 + exp(-x)) in fp32, element by element.

    torch.sigmoid and silu take the last elements of a tensor by another routine, so that a value
    would depend on how many rows there are; exp, add and divide do not.
    """
    return 1.0 / (1.0 + torch.exp(-x.float()))


@dataclass(frozen=True)
class ReferenceLinear:
    """One matrix as the checkpoint has it, [out, in]."""

    weight_ND: Tensor

    @property
    def in_features(self) -> int:
        """D."""
        return self.weight_ND.shape[1]

    @property
    def out_features(self) -> int:
        """N."""
        return self.weight_ND.shape[0]


@dataclass
class ReferenceTable:
    """Experts of one layer as the checkpoint has them."""

    num_experts: int
    hidden_size: int
    width: int
    dtype: torch.dtype
    _experts: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def put(self, expert: int, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> None:
        """Keep one expert's three matrices."""
        check_expert(self, expert, gate_FD, up_FD, down_DF)
        self._experts[expert] = (gate_FD.clone(), up_FD.clone(), down_DF.clone())

    def drop(self, expert: int) -> None:
        """Free one expert."""
        self._experts.pop(expert, None)

    def holds(self, expert: int) -> bool:
        """Whether the expert is here."""
        return expert in self._experts

    @property
    def nbytes(self) -> int:
        """Bytes of weights held now."""
        return sum(w.nbytes for weights in self._experts.values() for w in weights)

    def weights(self, expert: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return gate [F, D], up [F, D], down [D, F]."""
        return self._experts[expert]


class ReferenceKernels:
    """`ExpertKernels` in plain torch."""

    name = "reference"
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.bit_class = f"reference/torch-{torch.__version__.split('+')[0]}"

    def set_threads(self, num_threads: int) -> None:
        """Set torch's own threads."""
        torch.set_num_threads(num_threads)

    def pack_linear(self, weight_ND: Tensor) -> ReferenceLinear:
        """Keep the matrix as it is."""
        return ReferenceLinear(weight_ND.contiguous())

    def linear(
        self, x_TD: Tensor, weight: ReferenceLinear, out_dtype: torch.dtype | None = None
    ) -> Tensor:
        """Return x @ Wᵀ, accumulated in fp32, rounded once to `out_dtype` (default x's)."""
        out_dtype = out_dtype or x_TD.dtype
        weight_ND = weight.weight_ND
        if out_dtype == torch.float32:  # the router and the logits: never rounded to bfloat16
            return tiled_linear(x_TD.float(), weight_ND.float())
        return tiled_linear(x_TD, weight_ND).to(out_dtype)

    def new_table(
        self, num_experts: int, hidden_size: int, width: int, dtype: torch.dtype
    ) -> ReferenceTable:
        """Return an empty table."""
        return ReferenceTable(num_experts, hidden_size, width, dtype)

    def grouped_swiglu(
        self,
        x_TD: Tensor,
        token_idx_N: Int32,
        expert_ids_G: Int32,
        row_offsets_G1: Int32,
        table: ReferenceTable,
    ) -> Tensor:
        """Return down(silu(gate(x)) * up(x)) for every (token, expert) row, un-reduced (N, D)."""
        x_ND = x_TD[torch.from_numpy(token_idx_N).long()]
        out_ND = torch.empty_like(x_ND)
        for group, expert in enumerate(expert_ids_G.tolist()):
            rows = slice(int(row_offsets_G1[group]), int(row_offsets_G1[group + 1]))
            gate_FD, up_FD, down_DF = table.weights(expert)
            gate_RF = tiled_linear(x_ND[rows], gate_FD).float()
            up_RF = tiled_linear(x_ND[rows], up_FD).float()
            act_RF = (gate_RF * sigmoid(gate_RF) * up_RF).to(x_TD.dtype)
            out_ND[rows] = tiled_linear(act_RF, down_DF)
        return out_ND


def check_expert(
    table: ExpertTable, expert: int, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor
) -> None:
    """Raise ConfigError unless the expert's id, shapes and dtype fit the table."""
    d, f = table.hidden_size, table.width
    if not 0 <= expert < table.num_experts:
        raise ConfigError("experts", "expert", f"id {expert}", f"0 to {table.num_experts - 1}")
    for name, weight, shape in (
        ("gate_proj", gate_FD, (f, d)),
        ("up_proj", up_FD, (f, d)),
        ("down_proj", down_DF, (d, f)),
    ):
        if tuple(weight.shape) != shape or weight.dtype != table.dtype:
            found = f"{tuple(weight.shape)} {weight.dtype}"
            raise ConfigError(
                f"expert {expert}", name, f"is {found}", f"shape {shape} of {table.dtype}"
            )
