"""A second opinion on gate and grouped experts: DeepSpeed's expert-parallel modules.

Written from another code base than transformers, they agree with it on the same arithmetic: fp32
sigmoid, bias for the choice only, normalised and scaled weights, SwiGLU per expert.

T tokens, E experts, K per token, D hidden, F expert width, N rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from experts.kernels import load_expert_kernels
from router.gate import gate

T, D, F = 37, 48, 24


class Modules(NamedTuple):
    """The two constructors under test; DeepSpeed ships no types."""

    router: Callable[..., nn.Module]
    experts: Callable[..., nn.Module]


@pytest.fixture
def deepspeed(monkeypatch: pytest.MonkeyPatch) -> Modules:
    """DeepSpeed on the CPU. Imported here: it takes seconds, and reads the variable on import."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    # The op builder compiles for most of a minute when something asks it to load.
    from deepspeed.moe.ep_experts import GroupedExperts  # noqa: PLC0415
    from deepspeed.moe.ep_router import TokenChoiceTopKRouter  # noqa: PLC0415
    from deepspeed.ops.op_builder.builder import OpBuilder  # noqa: PLC0415

    def refuse(self: object, verbose: bool = True) -> None:
        raise AssertionError("DeepSpeed started a JIT compile")

    monkeypatch.setattr(OpBuilder, "jit_load", refuse)
    return Modules(TokenChoiceTopKRouter, GroupedExperts)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("num_experts", "top_k"), [(256, 4), (128, 8), (16, 1)])
@torch.no_grad()
def test_the_gate_picks_and_weighs_as_deepspeed(
    deepspeed: Modules, num_experts: int, top_k: int
) -> None:
    router = deepspeed.router(
        dim=D,
        num_experts=num_experts,
        num_expert_groups=None,
        num_limited_groups=None,
        top_k=top_k,
        score_func="sigmoid",
        route_norm=True,
        route_scale=2.448,
        gate_bias=False,
    )
    x_TD, bias_E = normal(T, D, seed=1), 0.1 * normal(num_experts, seed=2)
    linear = router.gate
    assert isinstance(linear, nn.Linear)
    linear.weight.copy_(normal(num_experts, D, seed=3) / D**0.5)
    expected_weights_TK, expected_ids_TK, _ = router(x_TD, bias_E)

    ids_TK, weights_TK = gate(linear(x_TD), bias_E, top_k, 2.448)

    # DeepSpeed leaves the slots unsorted: both sides are compared by expert.
    assert torch.equal(dense(ids_TK, num_experts) > 0, dense(expected_ids_TK, num_experts) > 0)
    torch.testing.assert_close(
        dense(ids_TK, num_experts, weights_TK),
        dense(expected_ids_TK, num_experts, expected_weights_TK),
        rtol=1e-6,
        atol=0,
    )


def dense(ids_TK: Tensor, num_experts: int, weights_TK: Tensor | None = None) -> Tensor:
    """Return (T, E): each picked expert's weight (1 without weights), 0 elsewhere."""
    values_TK = torch.ones(ids_TK.shape) if weights_TK is None else weights_TK
    return torch.zeros(len(ids_TK), num_experts).scatter_(1, ids_TK.long(), values_TK)


@pytest.mark.parametrize("counts", [[3, 0, 5, 1], [0, 0, 0, 7], [17, 16, 15, 33]])
@torch.no_grad()
def test_grouped_swiglu_computes_what_deepspeeds_experts_do(
    deepspeed: Modules, counts: list[int]
) -> None:
    experts = deepspeed.experts(dim=D, hidden_dim=F, num_experts=len(counts), use_grouped_mm=False)
    for seed, name in enumerate(("w1", "w2", "w3")):
        weight = experts.get_parameter(name)
        weight.copy_(normal(*weight.shape, seed=seed) / weight.shape[-1] ** 0.5)
    num_rows = sum(counts)
    x_TD = normal(T, D, seed=9)
    token_idx_N = np.arange(num_rows, dtype=np.int32)[::-1] % T
    rows_ND = x_TD[torch.from_numpy(token_idx_N.astype(np.int64))]
    expected_ND = experts(rows_ND, torch.tensor(counts))

    kernels = load_expert_kernels("reference")
    table = kernels.new_table(len(counts), D, F, torch.float32)
    for expert in range(len(counts)):
        gate_FD, down_DF, up_FD = (experts.get_parameter(f"w{i}")[expert] for i in (1, 2, 3))
        table.put(expert, gate_FD, up_FD, down_DF)
    out_ND = kernels.grouped_swiglu(
        x_TD,
        np.ascontiguousarray(token_idx_N),
        np.arange(len(counts), dtype=np.int32),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        table,
    )

    torch.testing.assert_close(out_ND, expected_ND, rtol=1e-5, atol=1e-6)
