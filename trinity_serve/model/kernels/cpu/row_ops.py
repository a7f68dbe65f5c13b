"""Ops that see one row at a time, in C: norms, the gate, combine, the embedding.

T rows, D hidden, E experts, K slots, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cluster.errors import KernelInputError
from experts.kernels.cpu.library import DTYPE_CODES, Status, address
from trinity_serve.model.batch import Int64
from trinity_serve.model.kernels.cpu.checks import INT64, check_array, check_tensor
from trinity_serve.model.kernels.cpu.library import ModelLibrary

MAX_EXPERTS = 4096
"""Of the C sources' own buffers."""


class CpuRowOps:
    """The part of `ModelKernels` that knows no KV cache."""

    def __init__(self, library: ModelLibrary) -> None:
        self.library = library
        self._c = library.c

    def rms_norm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """See `ModelKernels.rms_norm`."""
        num_rows, width = x_TD.shape
        check_tensor("x", x_TD, x_TD.shape, x_TD.dtype)
        check_tensor("weight", weight_D, (width,), x_TD.dtype)
        out_TD = torch.empty_like(x_TD)
        self._c.ts_rms_norm(
            x_TD.data_ptr(),
            weight_D.data_ptr(),
            out_TD.data_ptr(),
            num_rows,
            width,
            DTYPE_CODES[x_TD.dtype],
            eps,
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
        self._c.ts_residual_norm(
            residual_TD.data_ptr(),
            branch_TD.data_ptr(),
            post_weight_D.data_ptr(),
            next_weight_D.data_ptr(),
            sum_TD.data_ptr(),
            out_TD.data_ptr(),
            shape[0],
            shape[1],
            DTYPE_CODES[dtype],
            eps,
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
        ids_TK = torch.empty((num_tokens, top_k), dtype=torch.int64)
        weights_TK = torch.empty((num_tokens, top_k), dtype=torch.float32)
        self._c.ts_gate_topk(
            logits_TE.data_ptr(),
            bias_E.data_ptr(),
            num_tokens,
            num_experts,
            top_k,
            route_scale,
            ids_TK.data_ptr(),
            weights_TK.data_ptr(),
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
        check_array("row_of_slot", row_of_slot_TK, (num_tokens, top_k), INT64)
        out_TD = torch.empty_like(shared_TD)
        status = self._c.ts_combine(
            rows_ND.data_ptr(),
            address(row_of_slot_TK),
            topk_weights_TK.data_ptr(),
            shared_TD.data_ptr(),
            out_TD.data_ptr(),
            num_tokens,
            top_k,
            width,
            rows_ND.shape[0],
            DTYPE_CODES[dtype],
        )
        if status != Status.OK:
            expected = f"0 to {rows_ND.shape[0] - 1}"
            raise KernelInputError("row_of_slot", f"{row_of_slot_TK.tolist()}", expected)
        return out_TD

    def embed(self, token_ids_T: Int64, table_VD: Tensor, scale: float) -> Tensor:
        """See `ModelKernels.embed`."""
        num_tokens, (vocab_size, width) = len(token_ids_T), table_VD.shape
        check_tensor("table", table_VD, table_VD.shape, table_VD.dtype)
        check_array("token_ids", token_ids_T, (num_tokens,), INT64)
        out_TD = torch.empty((num_tokens, width), dtype=table_VD.dtype)
        status = self._c.ts_embed(
            address(token_ids_T),
            table_VD.data_ptr(),
            out_TD.data_ptr(),
            num_tokens,
            vocab_size,
            width,
            DTYPE_CODES[table_VD.dtype],
            scale,
        )
        if status != Status.OK:
            raise KernelInputError("token_ids", f"{token_ids_T.tolist()}", f"0 to {vocab_size - 1}")
        return out_TD
