"""The expert side's kernels, in every variant that Trinity-Large and -Nano launch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from experts.kernels.cuda.linear import linear_kernel
from experts.kernels.cuda.swiglu import down_kernel, gate_up_kernel
from experts.kernels.cuda.tiles import BLOCK_K, TILES, Tile
from tests.gpu.kernels import AotKernel, KernelList

NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
FORMS = {"plain": 0, "e4m3_row": 0, "e4m3_block": 128, "int4": 128, "e2m1_divided": 16}
LARGE_TABLE = 256
"""Groups that a call may have at most: the experts of a layer."""
WGMMA = r"wgmma\..*m64n\d+k16"
"""One instruction, and one k, for bfloat16 from 1 to 4,096 rows."""

FLOAT32_SPILL = 32
"""Fused multiply-adds keep their operands in registers; the assemblers of Triton 3.7 and 3.9 spill
two to six. Trinity is not served in float32 on a GPU; the router's product is, and spills none."""

LINEARS = (
    (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.float32, torch.float32),
    (torch.float32, torch.float32, torch.float32),
)
"""Rows, weights, outputs: projections; lm_head; the router; everything of a float32 model."""


def kernel_list() -> KernelList:
    """Return the list."""
    suites = (
        "tests/contract/test_kernels_experts.py",
        "tests/contract/test_kernels_experts_cuda.py",
    )
    return KernelList("experts", suites, (*linears(), *plain_swiglus(), *packed_swiglus()))


def linears() -> Iterator[AotKernel]:
    """Each combination of dtypes in each of its tiles."""
    for x, weight, out in LINEARS:
        for tile in TILES[weight]:
            dtypes = f"{NAMES[x]} x {NAMES[weight]} -> {NAMES[out]}"
            yield AotKernel(
                name=f"linear {dtypes} n{tile.block_n}",
                fn=linear_kernel,
                signature={
                    "x": f"*{NAMES[x]}",
                    "weight": f"*{NAMES[weight]}",
                    "out": f"*{NAMES[out]}",
                    "num_rows": "i32",
                    "num_n_blocks": "i32",
                    "width": "i32",
                    "num_columns": "i32",
                },
                constexprs=sizes(tile, weight),
                judged_by=("linear",),
                divisible_by_16=("width", "num_columns"),
                num_warps=tile.num_warps,
                num_stages=tile.num_stages,
                max_spill_bytes=FLOAT32_SPILL if x is torch.float32 else 0,
                instruction=WGMMA if weight is torch.bfloat16 else "",
            )


def plain_swiglus() -> Iterator[AotKernel]:
    """Both products, of both dtypes, in each of their tiles."""
    for dtype, tiles in TILES.items():
        for tile in tiles:
            yield from swiglu(dtype, tile, "plain")


def packed_swiglus() -> Iterator[AotKernel]:
    """Both products over each packed form, for bfloat16 rows."""
    for form in FORMS:
        if form != "plain":
            for tile in TILES[torch.bfloat16]:
                yield from swiglu(torch.bfloat16, tile, form)


def swiglu(dtype: torch.dtype, tile: Tile, form: str) -> Iterator[AotKernel]:
    """Both products of one variant."""
    element = f"*{NAMES[dtype]}"
    common = {
        "expert_ids": "*i32",
        "row_offsets": "*i32",
        "addresses": "*i64",
        "num_groups": "i32",
        "hidden": "i32",
        "width": "i32",
    }
    offsets = {"scales_at": "i32", "overall_at": "i32"}
    constexprs = sizes(tile, dtype) | {
        "FORM": form,
        "GROUP": FORMS[form],
        "MAX_GROUPS": LARGE_TABLE,
    }
    signatures: tuple[tuple[str, object, Mapping[str, str]], ...] = (
        (
            "gate_up",
            gate_up_kernel,
            {"x": element, "act": element, "token_idx": "*i32"}
            | common
            | {"gate_at": "i32", "up_at": "i32"}
            | offsets,
        ),
        (
            "down",
            down_kernel,
            {"act": element, "out": element} | common | {"down_at": "i32"} | offsets,
        ),
    )
    for name, fn, signature in signatures:
        yield AotKernel(
            name=f"{name} {NAMES[dtype]} {form} n{tile.block_n}",
            fn=fn,
            signature=signature,
            constexprs=constexprs,
            judged_by=("expert",) if form == "plain" else ("packed",),
            divisible_by_16=tuple(
                k for k, v in signature.items() if v == "i32" and k != "num_groups"
            ),
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            max_spill_bytes=FLOAT32_SPILL if dtype is torch.float32 else 0,
            instruction=WGMMA if dtype is torch.bfloat16 else "",
        )


def sizes(tile: Tile, dtype: torch.dtype) -> dict[str, object]:
    """The constexprs of a tile; Large's and Nano's widths are multiples of K's step."""
    return {
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": BLOCK_K[dtype],
        "EVEN_K": True,
    }
