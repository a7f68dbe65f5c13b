"""`ExpertKernels` in Triton, on a CUDA device; or interpreted, on the CPU (`TRITON_INTERPRET=1`).

T tokens, D input width, N output width or rows, F expert width, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
from torch import Tensor

from cluster.errors import ConfigError, KernelInputError
from experts.kernels.base import Int32
from experts.kernels.cuda.groups import DeviceGroups, check_groups
from experts.kernels.cuda.linear import linear_kernel
from experts.kernels.cuda.numbers import INTERPRETED
from experts.kernels.cuda.swiglu import down_kernel, gate_up_kernel
from experts.kernels.cuda.table import CudaTable, new_cuda_table
from experts.kernels.cuda.tiles import (
    BLOCK_K,
    TILES,
    Tile,
    most_tiles,
    num_tiles,
    padded_groups,
    tile_for,
)
from experts.quantised.scheme import Scheme

VERSION = 1
"""Grows with every change of the kernels that may change a bit."""

_WIDENED = (torch.bfloat16, torch.float32)
"""Rows and weights of the router: rows are widened, exactly."""


@dataclass(frozen=True, slots=True)
class CudaLinear:
    """One matrix [N, D] on the device."""

    weight_ND: Tensor

    @property
    def in_features(self) -> int:
        """D."""
        return self.weight_ND.shape[1]

    @property
    def out_features(self) -> int:
        """N."""
        return self.weight_ND.shape[0]


class CudaExpertKernels:
    """`ExpertKernels` on the current CUDA device. Raises ConfigError when there is none.

    Rows may come from the host: they are copied, and the outputs go back to where the rows were.
    """

    name = "cuda"

    def __init__(self) -> None:
        self.device, machine = _device()
        self.bit_class = f"cuda-triton/{VERSION}/{triton.__version__}/{machine}"

    def set_threads(self, num_threads: int) -> None:
        """Do nothing: a device has no threads to be told of."""

    def pack_linear(self, weight_ND: Tensor) -> CudaLinear:
        """Copy a checkpoint matrix [out, in] (float32 or bfloat16) to the device."""
        _check_dtype(weight_ND.dtype, "weight")
        if weight_ND.dim() != 2 or 0 in weight_ND.shape:
            found = f"shape {tuple(weight_ND.shape)}"
            raise KernelInputError("weight", found, "[out, in], not empty")
        return CudaLinear(weight_ND.to(self.device, copy=True).contiguous())

    def linear(
        self, x_TD: Tensor, weight: CudaLinear, out_dtype: torch.dtype | None = None
    ) -> Tensor:
        """See `ExpertKernels.linear`."""
        _check_rows(x_TD, weight.in_features)
        dtype = weight.weight_ND.dtype
        if x_TD.dtype is not dtype and (x_TD.dtype, dtype) != _WIDENED:
            raise KernelInputError("x", f"dtype {x_TD.dtype}", f"{dtype}, as the weight")
        num_rows, num_columns = x_TD.shape
        out_TN = torch.empty(
            (num_rows, weight.out_features), dtype=out_dtype or x_TD.dtype, device=self.device
        )
        if num_rows == 0:
            return out_TN.to(x_TD.device)
        tile = tile_for(num_rows, dtype)
        num_n_blocks = triton.cdiv(num_rows, tile.block_n)
        linear_kernel[(triton.cdiv(weight.out_features, tile.block_m) * num_n_blocks,)](
            x_TD.to(self.device),
            weight.weight_ND,
            out_TN,
            num_rows,
            num_n_blocks,
            weight.out_features,
            num_columns,
            EVEN_K=num_columns % BLOCK_K[dtype] == 0,
            **_options(tile, dtype),
        )
        return out_TN.to(x_TD.device)

    def new_table(
        self, num_experts: int, hidden_size: int, width: int, dtype: torch.dtype
    ) -> CudaTable:
        """Return an empty table; memory is taken as experts are put."""
        _check_dtype(dtype, "an expert table")
        return new_cuda_table(num_experts, (hidden_size, width), dtype, None, self.device)

    def new_quantised_table(
        self, num_experts: int, shape: tuple[int, int], dtype: torch.dtype, scheme: Scheme
    ) -> CudaTable:
        """Return an empty table for experts of `shape` (hidden, width), kept as they are stored.

        Its outputs have the bits of a plain table over the dequantised weights.
        """
        _check_dtype(dtype, "an expert table")
        return new_cuda_table(num_experts, shape, dtype, scheme, self.device)

    def grouped_swiglu(
        self,
        x_TD: Tensor,
        token_idx_N: Int32,
        expert_ids_G: Int32,
        row_offsets_G1: Int32,
        table: CudaTable,
    ) -> Tensor:
        """See `ExpertKernels.grouped_swiglu`."""
        _check_rows(x_TD, table.hidden_size)
        if x_TD.dtype is not table.dtype:
            raise KernelInputError("x", f"dtype {x_TD.dtype}", f"{table.dtype}, as the experts")
        check_groups(x_TD.shape[0], token_idx_N, expert_ids_G, row_offsets_G1, table)
        num_rows, num_groups = len(token_idx_N), len(expert_ids_G)
        if num_rows == 0:
            return x_TD.new_empty((0, table.hidden_size))
        rows_G = np.diff(row_offsets_G1)
        # One copy of all three.
        arrays = np.concatenate((token_idx_N, expert_ids_G, row_offsets_G1))
        parts = torch.from_numpy(arrays).to(self.device, non_blocking=True)
        max_rows = int(rows_G.max())
        block_n = tile_for(max_rows, table.dtype).block_n
        groups = DeviceGroups(
            parts[:num_rows],
            parts[num_rows : num_rows + num_groups],
            parts[num_rows + num_groups :],
            max_rows,
            num_tiles(rows_G.tolist(), block_n),
        )
        return self.grouped_swiglu_on_device(x_TD.to(self.device), groups, table).to(x_TD.device)

    def grouped_swiglu_on_device(
        self, x_TD: Tensor, groups: DeviceGroups, table: CudaTable
    ) -> Tensor:
        """Compute groups that only the device knows: no look at their values, no wait for them.

        What a CUDA graph captures and replays over other values of the same arrays. Rows beyond
        the last offset stay unwritten. Every index is the caller's responsibility.
        """
        num_rows, num_groups = len(groups.token_idx_N), len(groups.expert_ids_G)
        tile, layout = tile_for(groups.max_rows, table.dtype), table.layout
        tiles = groups.num_tiles
        if tiles is None:
            tiles = most_tiles(num_rows, num_groups, tile.block_n)
        options = _options(tile, table.dtype) | {
            "FORM": layout.form.kernel,
            "GROUP": layout.form.group,
            "MAX_GROUPS": padded_groups(num_groups),
        }
        shape = (num_groups, layout.hidden, layout.width)
        arrays = (groups.expert_ids_G, groups.row_offsets_G1, table.addresses_E)
        gate_at, up_at, down_at = layout.starts
        act_NF = x_TD.new_empty((num_rows, layout.width))
        gate_up_kernel[(triton.cdiv(layout.width, tile.block_m) * tiles,)](
            x_TD,
            act_NF,
            groups.token_idx_N,
            *arrays,
            *shape,
            gate_at,
            up_at,
            layout.gate_up.scales_at,
            layout.gate_up.overall_at,
            EVEN_K=layout.hidden % BLOCK_K[table.dtype] == 0,
            **options,
        )
        out_ND = x_TD.new_empty((num_rows, layout.hidden))
        down_kernel[(triton.cdiv(layout.hidden, tile.block_m) * tiles,)](
            act_NF,
            out_ND,
            *arrays,
            *shape,
            down_at,
            layout.down.scales_at,
            layout.down.overall_at,
            EVEN_K=layout.width % BLOCK_K[table.dtype] == 0,
            **options,
        )
        return out_ND


def _device() -> tuple[torch.device, str]:
    """Return where tensors live, and the machine's word in the bit class."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    if INTERPRETED.value:
        return device, "interpreted"
    if not on_gpu:
        found = "torch finds no CUDA device here"
        allowed = "a machine with one, TRITON_INTERPRET=1 (slow, for tests), or cpu or reference"
        raise ConfigError("kernels", "cuda", found, allowed)
    major, minor = torch.cuda.get_device_capability(device)
    return device, f"sm_{major}{minor}"


def _options(tile: Tile, dtype: torch.dtype) -> dict[str, int | str]:
    return {
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": BLOCK_K[dtype],
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }


def _check_dtype(dtype: torch.dtype, what: str) -> None:
    if dtype not in TILES:
        raise KernelInputError(what, f"dtype {dtype}", "torch.float32 or torch.bfloat16")


def _check_rows(x_TD: Tensor, width: int) -> None:
    if x_TD.dim() != 2 or x_TD.shape[1] != width or not x_TD.is_contiguous():
        found = f"shape {tuple(x_TD.shape)}, strides {x_TD.stride()}"
        raise KernelInputError("x", found, f"contiguous [rows, {width}]")
