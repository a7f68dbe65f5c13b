"""The plain meaning of the attention-side ops in torch and numpy.

Row-invariance comes from fixed shapes: products run in fixed row tiles (`tiled_linear`), sums along
a row are numpy's pairwise sums (they see one row at a time), attention walks tiles of 32 positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from experts.kernels.reference import sigmoid, tiled_linear
from router.combine import combine
from router.gate import gate
from trinity_serve.model.batch import KV_BLOCK_SIZE, ForwardBatch, Int64, KvView
from trinity_serve.model.kernels.base import AttentionShape


def row_sum(x: Tensor) -> Tensor:
    """Sum float32 over the last axis, row by row; keeps the axis."""
    return torch.from_numpy(np.add.reduce(x.contiguous().numpy(), axis=-1, keepdims=True))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise over the last axis in fp32, multiply by the gain in fp32, round once."""
    x_fp32 = x.float()
    mean_square = row_sum(x_fp32 * x_fp32) / x.shape[-1]
    return (weight.float() * (x_fp32 * torch.rsqrt(mean_square + eps))).to(x.dtype)


def rotate(x_THd: Tensor, cos_T1d: Tensor, sin_T1d: Tensor) -> Tensor:
    """Rotate pairs (i, i + d/2) by the position's angle ("NeoX" halves), in x's dtype."""
    first, second = x_THd.chunk(2, dim=-1)
    return x_THd * cos_T1d + torch.cat((-second, first), dim=-1) * sin_T1d


@dataclass
class ReferenceKv:
    """K and V as (layers, blocks, 32, K, d)."""

    keys: Tensor
    values: Tensor

    @property
    def num_blocks(self) -> int:
        """Blocks in every layer."""
        return self.keys.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.keys.nbytes + self.values.nbytes


class ReferenceModelKernels:
    """`ModelKernels` in plain torch."""

    name = "reference"
    device = torch.device("cpu")

    def new_kv_cache(
        self, num_layers: int, num_blocks: int, shape: AttentionShape, dtype: torch.dtype
    ) -> ReferenceKv:
        """Allocate zeroed K and V."""
        size = (num_layers, num_blocks, KV_BLOCK_SIZE, shape.num_kv_heads, shape.head_dim)
        return ReferenceKv(torch.zeros(size, dtype=dtype), torch.zeros(size, dtype=dtype))

    def rms_norm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """See `ModelKernels.rms_norm`."""
        return rms_norm(x_TD, weight_D, eps)

    def residual_norm(
        self,
        residual_TD: Tensor,
        branch_TD: Tensor,
        post_weight_D: Tensor,
        next_weight_D: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        """See `ModelKernels.residual_norm`."""
        x_TD = residual_TD + rms_norm(branch_TD, post_weight_D, eps)
        return x_TD, rms_norm(x_TD, next_weight_D, eps)

    def write_kv(
        self,
        qkvg_TX: Tensor,
        q_norm_d: Tensor,
        k_norm_d: Tensor,
        shape: AttentionShape,
        positions_T: Int64,
        rope: Tensor | None,
        view: KvView,
        cache: ReferenceKv,
        layer: int,
    ) -> Tensor:
        """See `ModelKernels.write_kv`."""
        num_rows = qkvg_TX.shape[0]
        q_width = shape.num_heads * shape.head_dim
        kv_width = shape.num_kv_heads * shape.head_dim
        q, k = qkvg_TX[:, :q_width], qkvg_TX[:, q_width : q_width + kv_width]
        v = qkvg_TX[:, q_width + kv_width : q_width + 2 * kv_width]
        q_THd = rms_norm(q.reshape(num_rows, -1, shape.head_dim), q_norm_d, shape.rms_norm_eps)
        k_TKd = rms_norm(k.reshape(num_rows, -1, shape.head_dim), k_norm_d, shape.rms_norm_eps)
        if rope is not None:
            angles = rope[torch.from_numpy(positions_T)].to(qkvg_TX.dtype)[:, None, :]
            cos, sin = (half.repeat(1, 1, 2) for half in angles.chunk(2, dim=-1))
            q_THd, k_TKd = rotate(q_THd, cos, sin), rotate(k_TKd, cos, sin)
        blocks, offsets = (
            torch.from_numpy(part) for part in np.divmod(view.slot_mapping_T, KV_BLOCK_SIZE)
        )
        cache.keys[layer, blocks, offsets] = k_TKd
        cache.values[layer, blocks, offsets] = v.reshape(k_TKd.shape)
        return q_THd.reshape(num_rows, q_width)

    def paged_attention(
        self,
        q_TX: Tensor,
        qkvg_TX: Tensor,
        shape: AttentionShape,
        batch: ForwardBatch,
        view: KvView,
        cache: ReferenceKv,
        layer: int,
        window: int | None,
    ) -> Tensor:
        """See `ModelKernels.paged_attention`."""
        out_THd = torch.empty(q_TX.shape[0], shape.num_heads, shape.head_dim, dtype=q_TX.dtype)
        for seq, (start, end) in enumerate(
            zip(batch.query_start_B1[:-1], batch.query_start_B1[1:], strict=True)
        ):
            rows = slice(int(start), int(end))
            attend = _SequenceAttention(
                shape, torch.from_numpy(batch.positions_T[rows]), view.block_tables_BM[seq], window
            )
            q_RHd = q_TX[rows].reshape(-1, shape.num_heads, shape.head_dim)
            for head in range(shape.num_kv_heads):
                group = shape.num_heads // shape.num_kv_heads
                heads = slice(head * group, (head + 1) * group)
                out_THd[rows, heads] = attend.one_kv_head(
                    q_RHd[:, heads], cache.keys[layer, :, :, head], cache.values[layer, :, :, head]
                )
        gate_TX = qkvg_TX[:, -q_TX.shape[1] :]
        return out_THd.reshape(q_TX.shape) * sigmoid(gate_TX).to(gate_TX.dtype)

    def gate_topk(
        self, logits_TE: Tensor, bias_E: Tensor, top_k: int, route_scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `ModelKernels.gate_topk`."""
        return gate(logits_TE, bias_E, top_k, route_scale)

    def combine(
        self, rows_ND: Tensor, row_of_slot_TK: Int64, topk_weights_TK: Tensor, shared_TD: Tensor
    ) -> Tensor:
        """See `ModelKernels.combine`."""
        return combine(rows_ND, row_of_slot_TK, topk_weights_TK, shared_TD)

    def embed(self, token_ids_T: Int64, table_VD: Tensor, scale: float) -> Tensor:
        """See `ModelKernels.embed`."""
        return table_VD[torch.from_numpy(token_ids_T)] * scale


@dataclass(frozen=True)
class _SequenceAttention:
    """Online softmax of R rows of one sequence over its tiles, in tile order."""

    shape: AttentionShape
    positions_R: Tensor
    block_table_M: np.typing.NDArray[np.int32]
    window: int | None

    def one_kv_head(self, q_RGd: Tensor, keys_BSd: Tensor, values_BSd: Tensor) -> Tensor:
        """Return (R, G, d) for the G query heads that share one KV head."""
        num_rows, group, head_dim = q_RGd.shape
        q_Pd = q_RGd.reshape(-1, head_dim).float()
        position_P1 = self.positions_R.repeat_interleave(group)[:, None]
        peak_P1 = torch.full_like(position_P1, -torch.inf, dtype=torch.float32)
        total_P1 = torch.zeros_like(peak_P1)
        acc_Pd = torch.zeros_like(q_Pd)
        for tile in self._tiles():
            block = int(self.block_table_M[tile])
            keys_Sd, values_Sd = keys_BSd[block].float(), values_BSd[block].float()
            allowed_PS = self._allowed(position_P1, tile)
            scores_PS = tiled_linear(q_Pd, keys_Sd) * self.shape.head_dim**-0.5
            scores_PS = scores_PS.masked_fill(~allowed_PS, -torch.inf)
            new_peak_P1 = torch.maximum(peak_P1, scores_PS.amax(dim=-1, keepdim=True))
            # A row that sees nothing yet keeps a peak of -inf: exp(-inf - 0) is 0, never NaN.
            base_P1 = new_peak_P1.masked_fill(new_peak_P1 == -torch.inf, 0.0)
            probs_PS = torch.exp(scores_PS - base_P1)
            decay_P1 = torch.exp(peak_P1 - base_P1)
            visible_P1 = allowed_PS.any(dim=-1, keepdim=True)
            weighted_Pd = tiled_linear(probs_PS, _finite_where_seen(values_Sd, allowed_PS).T)
            acc_Pd = torch.where(visible_P1, acc_Pd * decay_P1 + weighted_Pd, acc_Pd)
            total_P1 = torch.where(visible_P1, total_P1 * decay_P1 + row_sum(probs_PS), total_P1)
            peak_P1 = new_peak_P1
        return (acc_Pd / total_P1).reshape(num_rows, group, head_dim).to(q_RGd.dtype)

    def _tiles(self) -> range:
        """Tiles that any row can see."""
        first = 0
        if self.window is not None:
            first = max(0, int(self.positions_R[0]) - self.window + 1) // KV_BLOCK_SIZE
        return range(first, int(self.positions_R[-1]) // KV_BLOCK_SIZE + 1)

    def _allowed(self, position_P1: Tensor, tile: int) -> Tensor:
        """(P, 32): whether each row sees each position of the tile."""
        key_1S = torch.arange(tile * KV_BLOCK_SIZE, (tile + 1) * KV_BLOCK_SIZE)[None, :]
        allowed_PS = key_1S <= position_P1
        if self.window is not None:
            allowed_PS &= key_1S > position_P1 - self.window
        return allowed_PS


def _finite_where_seen(values_Sd: Tensor, allowed_PS: Tensor) -> Tensor:
    """Zero what no row may see: a reused block holds old values there, and 0 * NaN is NaN."""
    return values_Sd.masked_fill(~allowed_PS.any(dim=0)[:, None], 0.0)
