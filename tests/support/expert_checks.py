"""What `linear` and `grouped_swiglu` of a backend must give: the reference's numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from experts.kernels.base import ExpertKernels
from experts.kernels.reference import ReferenceKernels
from tests.support.kernels import assert_near, filled_table, groups, random, random_experts

REFERENCE: ExpertKernels = ReferenceKernels()


def check_linear(
    kernels: ExpertKernels, dtype: torch.dtype, size: tuple[int, int], row_counts: Sequence[int]
) -> None:
    """Compare a matrix of `size` (out, in) over so many rows."""
    out, inner = size
    weight = random(out, inner).mul(inner**-0.5).to(dtype)
    for rows in row_counts:
        x = random(rows, inner, dtype=dtype, seed=rows)
        got = kernels.linear(x, kernels.pack_linear(weight))
        assert_near(got, REFERENCE.linear(x, REFERENCE.pack_linear(weight)))


def check_logits(kernels: ExpertKernels, weight_dtype: torch.dtype) -> None:
    """Rows of bfloat16 give logits that are not rounded to it, as in float64."""
    weight = random(48, 65).to(weight_dtype)
    x = random(5, 65, dtype=torch.bfloat16)
    got = kernels.linear(x, kernels.pack_linear(weight), torch.float32)
    want = x.double() @ weight.double().T
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def check_expert_rows(
    kernels: ExpertKernels,
    dtype: torch.dtype,
    groups_of: tuple[list[int], list[int]],
    shape: tuple[int, int],
) -> None:
    """Compare groups (rows, expert ids) over five experts of `shape` (hidden, width)."""
    experts = random_experts(5, *shape, dtype)
    x = random(10, shape[0], dtype=dtype)
    arguments = groups(*groups_of, num_tokens=10)
    got = kernels.grouped_swiglu(x, *arguments, filled_table(kernels, experts))
    want = REFERENCE.grouped_swiglu(x, *arguments, filled_table(REFERENCE, experts))
    # torch's linear rounds gate and up to bfloat16 before silu, compiled kernels do not.
    assert_near(got, want, times=2)
