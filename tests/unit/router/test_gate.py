"""The gate against a slow, scalar reading of the rule."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from router.gate import gate


def scalar_gate(
    logits_E: list[float], bias_E: list[float], top_k: int, scale: float
) -> tuple[list[int], list[float]]:
    scores = [1.0 / (1.0 + math.exp(-logit)) for logit in logits_E]
    by_bias = sorted(range(len(scores)), key=lambda e: (-(scores[e] + bias_E[e]), e))[:top_k]
    total = sum(scores[e] for e in by_bias) + 1e-20
    return by_bias, [scores[e] / total * scale for e in by_bias]


def random_logits(num_tokens: int, num_experts: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits_TE = torch.randn(num_tokens, num_experts, generator=generator)
    return logits_TE, torch.randn(num_experts, generator=generator) * 0.2


def test_ids_and_weights_follow_the_scalar_rule() -> None:
    logits_TE, bias_E = random_logits(50, 32)
    ids_TK, weights_TK = gate(logits_TE, bias_E, 4, 2.448)
    for token in range(50):
        ids, weights = scalar_gate(logits_TE[token].tolist(), bias_E.tolist(), 4, 2.448)
        assert ids_TK[token].tolist() == ids
        torch.testing.assert_close(weights_TK[token], torch.tensor(weights), rtol=1e-5, atol=1e-6)


def test_bias_moves_the_choice_but_not_the_weight() -> None:
    logits_TE = torch.zeros(1, 4)
    ids_TK, weights_TK = gate(logits_TE, torch.tensor([0.0, 0.0, 5.0, 1.0]), 2, 1.0)
    assert ids_TK.tolist() == [[2, 3]]
    assert weights_TK.tolist() == [[0.5, 0.5]]


def test_equal_scores_go_to_the_lower_expert() -> None:
    ids_TK, _ = gate(torch.zeros(3, 8), torch.zeros(8), 4, 1.0)
    assert ids_TK.tolist() == [[0, 1, 2, 3]] * 3


def test_a_row_gets_the_same_bits_alone_and_among_others() -> None:
    logits_TE, bias_E = random_logits(67, 256)
    ids_TK, weights_TK = gate(logits_TE, bias_E, 4, 2.448)
    for token in (0, 1, 33, 66):
        alone_ids, alone_weights = gate(logits_TE[token : token + 1], bias_E, 4, 2.448)
        assert torch.equal(alone_ids[0], ids_TK[token])
        assert torch.equal(alone_weights[0], weights_TK[token])
