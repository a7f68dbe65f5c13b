"""One layer's attention over one batch: which kernels, with which programs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from trinity_serve.model.batch import KV_BLOCK_SIZE
from trinity_serve.model.kernels.base import AttentionShape
from trinity_serve.model.kernels.cuda.attention import (
    attend_chunk_kernel,
    attend_kernel,
    merge_kernel,
)
from trinity_serve.model.kernels.cuda.attention_plan import CHUNK_TILES, AttentionPlan
from trinity_serve.model.kernels.cuda.cache import CudaKv

FEW_ROWS, MANY_ROWS = 16, 32
"""Rows of an attention block, (position, head) pairs: one warp for each 16, so that only the number
of warps differs. Not 64: from there on another matrix instruction would be chosen (wgmma)."""
NUM_STAGES = 5
"""Two buffers of K and V: the block table's load in front of them takes stages too."""


def rows_per_block(num_rows: int, num_seqs: int, group: int) -> int:
    """Return the row tile: the small one where every sequence has one row. No bit depends on it."""
    return FEW_ROWS if num_rows == num_seqs and group <= FEW_ROWS else MANY_ROWS


@dataclass(frozen=True)
class AttentionCall:
    """What both ways of launching share."""

    q_TX: Tensor
    qkvg_TX: Tensor
    out_TX: Tensor
    cache: CudaKv
    layer: int
    plan: AttentionPlan
    window: int
    """0: none."""
    block_rows: int

    def run(self, programs_wanted: int) -> None:
        """Give chunks programs of their own where whole blocks are fewer than wanted."""
        whole_blocks = len(self.plan.blocks_N3) * self._shape.num_kv_heads
        if self.plan.max_chunks > 1 and whole_blocks < programs_wanted:
            self.by_chunks()
        else:
            self.whole()

    def whole(self) -> None:
        """One program walks all chunks of a block of rows."""
        plan = self.plan
        attend_kernel[(len(plan.blocks_N3), self._shape.num_kv_heads)](
            self.q_TX,
            self.qkvg_TX,
            self.out_TX,
            self.cache.keys[self.layer],
            self.cache.values[self.layer],
            plan.positions_T,
            plan.blocks_N3,
            plan.tables_BM,
            plan.tables_BM.shape[1],
            self._scale,
            *self._constants,
            self.block_rows,
            self._block_d,
            num_warps=self.block_rows // FEW_ROWS,
            num_stages=NUM_STAGES,
            enable_fp_fusion=False,
        )

    def by_chunks(self) -> None:
        """Chunks side by side, their states merged afterwards: the same bits."""
        shape, plan = self._shape, self.plan
        num_blocks, num_chunks = len(plan.blocks_N3), plan.max_chunks
        group = shape.num_heads // shape.num_kv_heads
        rows = self.block_rows // group * group
        units = (num_blocks, shape.num_kv_heads, num_chunks, rows)
        device = self.q_TX.device
        peaks, totals = (torch.empty(units, device=device) for _ in range(2))
        accs = torch.empty((*units, shape.head_dim), device=device)
        constants = (*self._constants, self.block_rows, rows, self._block_d)
        num_warps = self.block_rows // FEW_ROWS
        attend_chunk_kernel[(num_blocks, shape.num_kv_heads, num_chunks)](
            self.q_TX,
            self.cache.keys[self.layer],
            self.cache.values[self.layer],
            plan.positions_T,
            plan.blocks_N3,
            plan.tables_BM,
            peaks,
            totals,
            accs,
            plan.tables_BM.shape[1],
            num_chunks,
            self._scale,
            *constants,
            num_warps=num_warps,
            num_stages=NUM_STAGES,
            enable_fp_fusion=False,
        )
        merge_kernel[(num_blocks, shape.num_kv_heads)](
            self.qkvg_TX,
            self.out_TX,
            plan.positions_T,
            plan.blocks_N3,
            peaks,
            totals,
            accs,
            num_chunks,
            *constants,
            num_warps=num_warps,
            enable_fp_fusion=False,
        )

    @property
    def _shape(self) -> AttentionShape:
        return self.cache.shape

    @property
    def _constants(self) -> tuple[int, ...]:
        shape = self._shape
        heads = shape.num_heads, shape.num_kv_heads, shape.head_dim
        return (*heads, self.window, KV_BLOCK_SIZE, CHUNK_TILES)

    @property
    def _scale(self) -> float:
        return float(self._shape.head_dim**-0.5)

    @property
    def _block_d(self) -> int:
        return max(16, int(triton.next_power_of_2(self._shape.head_dim)))
