"""The part of `ModelKernels` that knows no KV cache: norms, the gate, combine, the embedding.

T rows, D hidden, E experts, K slots, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
from torch import Tensor

from cluster.errors import KernelInputError
from trinity_serve.model.batch import Int64
from trinity_serve.model.kernels.cpu.checks import check_tensor
from trinity_serve.model.kernels.cuda.norm import residual_norm_kernel, rms_norm_kernel
from trinity_serve.model.kernels.cuda.rows import combine_kernel, embed_kernel, gate_topk_kernel
from trinity_serve.model.kernels.cuda.step_memory import Remembered, upload

MAX_EXPERTS = 4096
"""A token's scores lie in one program's registers."""
_PIECE = 1024
"""Columns of one program where columns do not meet; any number gives the same bits."""
_GATE_TOKENS = 4
"""Likewise of tokens."""


class CudaRowOps:
    """Ops of one row each. Launched on the device's current stream; nothing waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._arrays: Remembered[Tensor] = Remembered()

    def on_device(self, array: Int64) -> Tensor:
        """Return the copy of a host array of this step, made when it is first asked for."""
        return self._arrays.of((array,), lambda: upload(array, self.device))

    def rms_norm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """See `ModelKernels.rms_norm`."""
        num_rows, width = x_TD.shape
        check_tensor("x", x_TD, x_TD.shape, x_TD.dtype)
        check_tensor("weight", weight_D, (width,), x_TD.dtype)
        out_TD = torch.empty_like(x_TD)
        if num_rows:
            rms_norm_kernel[(num_rows,)](
                x_TD, weight_D, out_TD, eps, width, **_block_of(width), enable_fp_fusion=False
            )
        return out_TD

    def residual_norm(
        self,
        residual_TD: Tensor,
        branch_TD: Tensor,
        post_weight_D: Tensor,
        next_weight_D: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        """See `ModelKernels.residual_norm`."""
        shape, dtype = residual_TD.shape, residual_TD.dtype
        check_tensor("residual", residual_TD, shape, dtype)
        check_tensor("branch", branch_TD, shape, dtype)
        check_tensor("post_weight", post_weight_D, shape[1:], dtype)
        check_tensor("next_weight", next_weight_D, shape[1:], dtype)
        sum_TD, out_TD = torch.empty_like(residual_TD), torch.empty_like(residual_TD)
        if shape[0]:
            residual_norm_kernel[(shape[0],)](
                residual_TD,
                branch_TD,
                post_weight_D,
                next_weight_D,
                sum_TD,
                out_TD,
                eps,
                shape[1],
                **_block_of(shape[1]),
                enable_fp_fusion=False,
            )
        return sum_TD, out_TD

    def gate_topk(
        self, logits_TE: Tensor, bias_E: Tensor, top_k: int, route_scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `ModelKernels.gate_topk`."""
        num_tokens, num_experts = logits_TE.shape
        check_tensor("logits", logits_TE, logits_TE.shape, torch.float32)
        check_tensor("bias", bias_E, (num_experts,), torch.float32)
        if not 1 <= top_k <= num_experts <= MAX_EXPERTS:
            raise KernelInputError("top_k", f"{top_k} of {num_experts}", f"1 to E <= {MAX_EXPERTS}")
        ids_TK = torch.empty((num_tokens, top_k), dtype=torch.int64, device=self.device)
        weights_TK = torch.empty((num_tokens, top_k), dtype=torch.float32, device=self.device)
        if num_tokens:
            gate_topk_kernel[(triton.cdiv(num_tokens, _GATE_TOKENS),)](
                logits_TE,
                bias_E,
                ids_TK,
                weights_TK,
                num_tokens,
                route_scale,
                num_experts,
                top_k,
                _GATE_TOKENS,
                triton.next_power_of_2(num_experts),
                triton.next_power_of_2(top_k),
                enable_fp_fusion=False,
            )
        return ids_TK, weights_TK

    def combine(
        self, rows_ND: Tensor, row_of_slot_TK: Int64, topk_weights_TK: Tensor, shared_TD: Tensor
    ) -> Tensor:
        """See `ModelKernels.combine`."""
        (num_tokens, width), dtype = shared_TD.shape, shared_TD.dtype
        top_k = row_of_slot_TK.shape[1]
        check_tensor("shared", shared_TD, shared_TD.shape, dtype)
        check_tensor("rows", rows_ND, (rows_ND.shape[0], width), dtype)
        check_tensor("weights", topk_weights_TK, (num_tokens, top_k), torch.float32)
        check_indices("row_of_slot", row_of_slot_TK, rows_ND.shape[0])
        out_TD = torch.empty_like(shared_TD)
        if num_tokens:
            combine_kernel[(num_tokens, triton.cdiv(width, _PIECE))](
                rows_ND,
                upload(row_of_slot_TK, self.device),
                topk_weights_TK,
                shared_TD,
                out_TD,
                width,
                top_k,
                _PIECE,
                enable_fp_fusion=False,
            )
        return out_TD

    def embed(self, token_ids_T: Int64, table_VD: Tensor, scale: float) -> Tensor:
        """See `ModelKernels.embed`."""
        num_tokens, (vocab_size, width) = len(token_ids_T), table_VD.shape
        check_tensor("table", table_VD, table_VD.shape, table_VD.dtype)
        check_indices("token_ids", token_ids_T, vocab_size)
        out_TD = torch.empty((num_tokens, width), dtype=table_VD.dtype, device=self.device)
        if num_tokens:
            embed_kernel[(num_tokens, triton.cdiv(width, _PIECE))](
                self.on_device(token_ids_T),
                table_VD,
                out_TD,
                scale,
                width,
                _PIECE,
                enable_fp_fusion=False,
            )
        return out_TD


def check_indices(name: str, indices: Int64, end: int) -> None:
    """Raise KernelInputError unless all are int64 from 0 to end - 1."""
    if indices.dtype != np.int64:
        raise KernelInputError(name, f"{indices.dtype}", "int64")
    if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < end:
        raise KernelInputError(name, f"{indices.tolist()}", f"0 to {end - 1}")


def _block_of(width: int) -> dict[str, int]:
    """Return a block that holds the row, and the warps that reduce it: both belong to the bits."""
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(8, max(1, block // 256))}
