"""The attention side's kernels in Large's and Nano's shapes, for `tests.gpu.check`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import triton

from cluster.model_config import AfmoeConfig
from tests.gpu.kernels import AotKernel, KernelList
from trinity_serve.model.batch import KV_BLOCK_SIZE
from trinity_serve.model.kernels.cuda.argmax import argmax_kernel
from trinity_serve.model.kernels.cuda.attention import (
    attend_chunk_kernel,
    attend_kernel,
    merge_kernel,
)
from trinity_serve.model.kernels.cuda.attention_call import FEW_ROWS, MANY_ROWS, NUM_STAGES
from trinity_serve.model.kernels.cuda.attention_plan import CHUNK_TILES
from trinity_serve.model.kernels.cuda.draw import draw_kernel, fill_buckets_kernel
from trinity_serve.model.kernels.cuda.norm import residual_norm_kernel, rms_norm_kernel
from trinity_serve.model.kernels.cuda.rows import combine_kernel, embed_kernel, gate_topk_kernel
from trinity_serve.model.kernels.cuda.write_kv import write_kv_kernel
from trinity_serve.synthetic import PRESETS

MMA = r"mma\.sync.*m16n8k16"
"""One instruction for every row tile: no bit may depend on the tile."""
SOME_SPILL = 64
"""A few registers outside the loop over tiles: two sets of states fill the 255 there are."""

# Every kernel is compiled as it is launched: products and sums rounded apart.
Kernel = partial(AotKernel, fp_fusion=False)


def kernel_list() -> KernelList:
    """Return the list."""
    suites = (
        "tests/contract/test_kernels_model_cuda.py",
        "tests/contract/test_kernels_model.py",
        "tests/contract/test_vocabulary_draw_cuda.py",
    )
    kernels = [
        kernel
        for name in ("large", "nano")
        for part in (_rows, _attention)
        for kernel in part(name, PRESETS[name])
    ]
    return KernelList("model", suites, (*kernels, *_vocabulary(PRESETS["large"])))


def _pointers(names: str, dtype: str = "bf16") -> dict[str, str]:
    return dict.fromkeys(names.split(), f"*{dtype}")


def _rows(name: str, config: AfmoeConfig) -> Iterator[AotKernel]:
    width = config.hidden_size
    block = triton.next_power_of_2(width)
    row = {"WIDTH": width, "BLOCK": block}
    warps = min(8, max(1, block // 256))
    yield Kernel(
        f"rms_norm {name}",
        rms_norm_kernel,
        {**_pointers("x weight out"), "eps": "fp32"},
        row,
        ("normed", "norms"),
        num_warps=warps,
    )
    yield Kernel(
        f"residual_norm {name}",
        residual_norm_kernel,
        {**_pointers("residual branch post_weight next_weight sums out"), "eps": "fp32"},
        row,
        ("normed", "norms"),
        num_warps=warps,
    )
    piece = {"WIDTH": width, "BLOCK": 1024}
    yield Kernel(
        f"embed {name}",
        embed_kernel,
        {"ids": "*i64", **_pointers("table out"), "scale": "fp32"},
        piece,
        ("embed",),
    )
    yield Kernel(
        f"combine {name}",
        combine_kernel,
        {
            "rows": "*bf16",
            "row_of_slot": "*i64",
            "topk_weights": "*fp32",
            **_pointers("shared out"),
        },
        {**piece, "K": config.num_experts_per_tok},
        ("combine",),
    )
    yield Kernel(
        f"gate_topk {name}",
        gate_topk_kernel,
        {
            **_pointers("logits bias", "fp32"),
            "ids": "*i64",
            "weights": "*fp32",
            "num_tokens": "i32",
            "route_scale": "fp32",
        },
        {
            "E": config.num_experts,
            "K": config.num_experts_per_tok,
            "BLOCK_T": 4,
            "BLOCK_E": triton.next_power_of_2(config.num_experts),
            "BLOCK_K": triton.next_power_of_2(config.num_experts_per_tok),
        },
        ("gate", "equal_scores"),
    )


def _attention(name: str, config: AfmoeConfig) -> Iterator[AotKernel]:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    shape = {"H": heads, "K": kv_heads, "D": config.head_dim}
    for rotate in (True, False):
        yield Kernel(
            f"write_kv {name} {'sliding' if rotate else 'global'}",
            write_kv_kernel,
            {
                **_pointers("qkvg q_norm k_norm"),
                **_pointers("positions slots", "i64"),
                "rope": "*fp32" if rotate else "*bf16",
                **_pointers("q_out keys values"),
                "num_rows": "i32",
                "eps": "fp32",
            },
            {
                **shape,
                "TILE": KV_BLOCK_SIZE,
                "ROWS": 1,
                "ROTATE": rotate,
                "BLOCK_HEADS": triton.next_power_of_2(heads + kv_heads),
                "BLOCK_K": triton.next_power_of_2(kv_heads),
                "BLOCK_D": config.head_dim,
            },
            ("attention", "prefill", "softmax"),
            num_warps=8
            if triton.next_power_of_2(heads + kv_heads) * config.head_dim >= 4096
            else 4,
        )
    for window in (config.sliding_window, 0):
        for rows in (FEW_ROWS, MANY_ROWS):
            label = f"{name} {'sliding' if window else 'global'} m{rows}"
            walk = {**shape, "WINDOW": window, "S": KV_BLOCK_SIZE, "CHUNK": CHUNK_TILES, "M": rows}
            yield from _walks(label, {**walk, "BLOCK_D": config.head_dim}, rows)


def _walks(label: str, walk: dict[str, int], rows: int) -> Iterator[AotKernel]:
    """One program for all chunks; one each; and what merges those."""
    group = walk["H"] // walk["K"]
    inputs = {"positions": "*i64", **_pointers("blocks tables", "i32")}
    partial_states = _pointers("partial_peaks partial_totals partial_accs", "fp32")
    suites = ("attention", "prefill", "softmax", "sequence", "chunks", "earlier_sequence")
    some_rows = {**walk, "ROWS": rows // group * group}
    yield Kernel(
        f"attend {label}",
        attend_kernel,
        {
            **_pointers("q qkvg out keys values"),
            **inputs,
            "table_width": "i32",
            "scale": "fp32",
        },
        walk,
        suites,
        num_warps=rows // FEW_ROWS,
        num_stages=NUM_STAGES,
        max_spill_bytes=SOME_SPILL,
        instruction=MMA,
    )
    yield Kernel(
        f"attend_chunk {label}",
        attend_chunk_kernel,
        {
            **_pointers("q keys values"),
            **inputs,
            **partial_states,
            "table_width": "i32",
            "num_chunks": "i32",
            "scale": "fp32",
        },
        some_rows,
        ("chunks",),
        num_warps=rows // FEW_ROWS,
        num_stages=NUM_STAGES,
        max_spill_bytes=SOME_SPILL,
        instruction=MMA,
    )
    yield Kernel(
        f"merge {label}",
        merge_kernel,
        {
            **_pointers("qkvg out"),
            "positions": "*i64",
            "blocks": "*i32",
            **partial_states,
            "num_chunks": "i32",
        },
        some_rows,
        ("chunks",),
        num_warps=rows // FEW_ROWS,
        max_spill_bytes=SOME_SPILL,
    )


def _vocabulary(config: AfmoeConfig) -> Iterator[AotKernel]:
    vocab = config.vocab_size
    sizes = {"V": vocab, "BLOCK": 4096}
    yield Kernel(
        "argmax",
        argmax_kernel,
        {"logits": "*fp32", "best": "*i64", "peaks": "*fp32"},
        sizes,
        ("largest_logit",),
        num_warps=8,
    )
    yield Kernel(
        "fill_buckets",
        fill_buckets_kernel,
        {**_pointers("logits peaks", "fp32"), "reals": "*fp64", "sums": "*i64", "counts": "*i32"},
        sizes,
        ("drawn",),
        num_warps=8,
    )
    yield Kernel(
        "draw",
        draw_kernel,
        {
            **_pointers("logits peaks", "fp32"),
            "reals": "*fp64",
            "whole": "*i64",
            "sums": "*i64",
            "counts": "*i32",
            "members": "*i32",
            "ids": "*i64",
        },
        {**sizes, "ID_BITS": (vocab - 1).bit_length(), "SEEDED": True},
        ("drawn", "uniform", "chosen"),
        num_warps=8,
    )
