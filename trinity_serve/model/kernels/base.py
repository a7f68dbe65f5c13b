"""The seam of the attention side: norms, rotary, KV cache and paged attention.

T rows, D hidden, H query heads, K KV heads, d head_dim, X = H*d.

Contract, for every backend: row-invariance as in `experts.kernels.base`, and prefill and decode
give the same bits for the same row: K and V are always read back from the cache in the cache's
dtype, over fixed tiles of 32 positions at absolute places (a tile without any allowed key for a row
contributes nothing to it).

A cache is passed as Any: each backend takes its own form of it and no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from trinity_serve.model.batch import ForwardBatch, Int64, KvView


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What an attention kernel needs to know about the model."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float

    @property
    def qkvg_width(self) -> int:
        """Width of the fused projection: q (H*d), k (K*d), v (K*d), gate (H*d)."""
        return (2 * self.num_heads + 2 * self.num_kv_heads) * self.head_dim


class KvCache(Protocol):
    """K and V of all layers of one pool, in the backend's own layout."""

    @property
    def num_blocks(self) -> int:
        """Blocks in every layer."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        ...


class ModelKernels(Protocol):
    """One backend: ``reference``, ``cpu`` or ``cuda``. Tensors are contiguous, in compute dtype."""

    name: str
    device: torch.device
    """Where tensors and the cache are."""

    def new_kv_cache(
        self, num_layers: int, num_blocks: int, shape: AttentionShape, dtype: torch.dtype
    ) -> KvCache:
        """Allocate a pool's cache: `num_blocks` blocks of 32 positions in each of its layers."""
        ...

    def rms_norm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """fp32(x) * rsqrt(mean(x²) + eps) * fp32(w), rounded once to x's dtype."""
        ...

    def residual_norm(
        self,
        residual_TD: Tensor,
        branch_TD: Tensor,
        post_weight_D: Tensor,
        next_weight_D: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        """Return (x, norm(x, next)) with x = residual + norm(branch, post), each step rounded.

        The sandwich between two sub-layers: post-norm, residual add, the next pre-norm.
        """
        ...

    def write_kv(
        self,
        qkvg_TX: Tensor,
        q_norm_d: Tensor,
        k_norm_d: Tensor,
        shape: AttentionShape,
        positions_T: Int64,
        rope: Tensor | None,
        view: KvView,
        cache: Any,  # noqa: ANN401
        layer: int,
    ) -> Tensor:
        """QK-norm, rotary (when `rope` is given), write K and V to the cache; return q (T, H*d).

        `qkvg_TX` is the fused projection's output in order q, k, v, gate. `rope` is float32
        (max_positions, head_dim): cos in the first half, sin in the second (cast to compute dtype
        before use, as HF does). `layer` counts within the pool.
        """
        ...

    def paged_attention(
        self,
        q_TX: Tensor,
        qkvg_TX: Tensor,
        shape: AttentionShape,
        batch: ForwardBatch,
        view: KvView,
        cache: Any,  # noqa: ANN401
        layer: int,
        window: int | None,
    ) -> Tensor:
        """Return attention output times sigmoid(gate), (T, H*d), ready for o_proj.

        Row t at position p sees keys s <= p, and s > p - window when a window is given. Scores and
        softmax in fp32; the gate is the last H*d columns of `qkvg_TX`; sigmoid is rounded to
        compute dtype before the product, as HF does.
        """
        ...

    def gate_topk(
        self, logits_TE: Tensor, bias_E: Tensor, top_k: int, route_scale: float
    ) -> tuple[Tensor, Tensor]:
        """Choose K experts per token, as `router.gate.gate` does (a drop-in for it).

        Returns ids (T, K) int64 by descending sigmoid(logit) + bias, the lower id first among
        equals, and weights (T, K) float32: scores over (their sum in slot order + 1e-20), times
        the scale. A logit of NaN is chosen and stays NaN in the weights.
        """
        ...

    def combine(
        self, rows_ND: Tensor, row_of_slot_TK: Int64, topk_weights_TK: Tensor, shared_TD: Tensor
    ) -> Tensor:
        """Sum the slots' rows and the shared expert's, as `router.combine.combine` does."""
        ...

    def embed(self, token_ids_T: Int64, table_VD: Tensor, scale: float) -> Tensor:
        """Return table[ids] * scale (T, D), multiplied in fp32 and rounded once."""
        ...
