"""Choosing tokens on the device, as the sampler asks for it.

R rows, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import triton
from torch import Tensor

from cluster.errors import KernelInputError
from trinity_serve.model.batch import Int64
from trinity_serve.model.kernels.cpu.checks import check_tensor
from trinity_serve.model.kernels.cpu.vocabulary import MAX_VOCABULARY
from trinity_serve.model.kernels.cuda.argmax import argmax_kernel
from trinity_serve.model.kernels.cuda.draw import BUCKETS, draw_kernel, fill_buckets_kernel
from trinity_serve.model.kernels.cuda.step_memory import upload

Float64 = npt.NDArray[np.float64]

_BLOCK = 4096
"""Logits that a program looks at together; no bit depends on it."""
_ROWS_AT_ONCE = 128
"""Bounds the scratch: 4 bytes for each of their logits, 100 MB of Trinity's vocabulary."""


class CudaVocabulary:
    """The largest logit and a drawn id of each row; nothing waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def argmax(self, logits_RV: Tensor) -> tuple[Tensor, Tensor]:
        """Return the largest logit's id of each row, int64, and that logit.

        The lowest id of equals; the first NaN if there is any.
        """
        num_rows, vocab = logits_RV.shape
        check_tensor("logits", logits_RV, logits_RV.shape, torch.float32)
        best_R = torch.empty(num_rows, dtype=torch.int64, device=self.device)
        peak_R = torch.empty(num_rows, dtype=torch.float32, device=self.device)
        if num_rows:
            argmax_kernel[(num_rows,)](
                logits_RV, best_R, peak_R, vocab, _block_of(vocab), num_warps=8
            )
        return best_R, peak_R

    def draw(
        self, logits_RV: Tensor, max_R: Tensor, reals_R4: Float64, whole_R4: Int64, *, seeded: bool
    ) -> Tensor:
        """Return one id per row, int64.

        Args:
            logits_RV: float32.
            max_R: float32, each row's (finite) maximum.
            reals_R4: temperature, top_p, log(min_p), and the uniform if not `seeded`.
            whole_R4: seed (its low 64 bits), choice, output index, top_k.
            seeded: make each row's uniform on the device, of the first three.
        """
        check_tensor("logits", logits_RV, logits_RV.shape, torch.float32)
        if logits_RV.shape[1] > MAX_VOCABULARY:
            expected = f"up to {MAX_VOCABULARY}"
            raise KernelInputError("logits", f"{logits_RV.shape[1]} columns", expected)
        reals, whole = upload(reals_R4, self.device), upload(whole_R4, self.device)
        ids_R = torch.empty(len(logits_RV), dtype=torch.int64, device=self.device)
        for first in range(0, len(logits_RV), _ROWS_AT_ONCE):
            rows = slice(first, first + _ROWS_AT_ONCE)
            own = logits_RV[rows], max_R[rows], reals[rows], whole[rows]
            self._draw_group(own, ids_R[rows], seeded)
        return ids_R

    def _draw_group(
        self, rows: tuple[Tensor, Tensor, Tensor, Tensor], ids_R: Tensor, seeded: bool
    ) -> None:
        logits_RV, max_R, reals_R4, whole_R4 = rows
        num_rows, vocab = logits_RV.shape
        block = _block_of(vocab)
        buckets = (num_rows, int(BUCKETS.value))
        sums = torch.zeros(buckets, dtype=torch.int64, device=self.device)
        counts = torch.zeros(buckets, dtype=torch.int32, device=self.device)
        fill_buckets_kernel[(num_rows, triton.cdiv(vocab, block))](
            logits_RV,
            max_R,
            reals_R4,
            sums,
            counts,
            vocab,
            block,
            num_warps=8,
            enable_fp_fusion=False,
        )
        draw_kernel[(num_rows,)](
            logits_RV,
            max_R,
            reals_R4,
            whole_R4,
            sums,
            counts,
            torch.empty((num_rows, vocab), dtype=torch.int32, device=self.device),
            ids_R,
            vocab,
            max(1, (vocab - 1).bit_length()),
            block,
            seeded,
            num_warps=8,
            enable_fp_fusion=False,
        )


def _block_of(vocab: int) -> int:
    return min(_BLOCK, int(triton.next_power_of_2(vocab)))
