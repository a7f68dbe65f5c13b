"""Plans, held to a row-by-row reading of what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experts.kernels import load_expert_kernels
from router.combine import combine
from router.plan import Int32, Int64, Plan, ShardRows, plan_rows, plan_slots
from trinity_serve.model.assemble import ModelBackend
from trinity_serve.model.kernels import load_model_kernels


def random_ids(num_tokens: int, num_experts: int, top_k: int, seed: int) -> Int64:
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(num_experts)[:top_k] for _ in range(num_tokens)])


def rows_in_order(plan: Plan) -> list[tuple[int, int, int]]:
    """List (shard, expert, token) of every row, as replies laid end to end would bring them."""
    rows: list[tuple[int, int, int]] = []
    for shard in plan.shards:
        assert shard.first_row == len(rows)
        sent = shard.token_idx_N if shard.tokens is None else shard.tokens[shard.token_idx_N]
        experts = np.repeat(shard.expert_ids_G, np.diff(shard.row_offsets_G1))
        rows += [(shard.shard_idx, int(e), int(t)) for e, t in zip(experts, sent, strict=True)]
    return rows


@given(
    num_tokens=st.integers(1, 20),
    num_experts=st.integers(2, 24),
    num_shards=st.integers(1, 6),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_every_slot_finds_its_own_row(
    num_tokens: int, num_experts: int, num_shards: int, seed: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    owner_E: Int32 = np.random.default_rng(seed).integers(0, num_shards, num_experts, np.int32)
    topk_ids_TK = random_ids(num_tokens, num_experts, top_k, seed)
    plan = plan_rows(topk_ids_TK, owner_E)
    rows = rows_in_order(plan)
    assert len(rows) == num_tokens * top_k
    for token in range(num_tokens):
        for slot in range(top_k):
            expert = int(topk_ids_TK[token, slot])
            row = rows[plan.row_of_slot[token, slot]]
            assert row == (owner_E[expert], expert, token)


def test_a_shard_gets_each_token_once_and_only_the_tokens_it_needs() -> None:
    owner_E = np.array([0, 0, 1, 1], np.int32)
    plan = plan_rows(np.array([[0, 1], [2, 3], [1, 0]]), owner_E)
    first, second = plan.shards
    assert first.tokens is not None
    assert second.tokens is not None
    assert first.tokens.tolist() == [0, 2]
    assert second.tokens.tolist() == [1]
    assert first.expert_ids_G.tolist() == [0, 1]
    assert first.token_idx_N.tolist() == [0, 1, 0, 1]


def test_all_tokens_in_order_need_no_copy() -> None:
    plan = plan_rows(np.array([[0, 1], [1, 0]]), np.zeros(2, np.int32))
    assert plan.shards[0].tokens is None


def test_single_slots_can_be_planned_again_elsewhere() -> None:
    expert_N, token_N = np.array([3, 1, 3]), np.array([4, 0, 2])
    plan = plan_slots(expert_N, token_N, 5, np.array([0, 0, 0, 1], np.int32))
    rows = rows_in_order(plan)
    assert [rows[at] for at in plan.row_of_slot] == [(1, 3, 4), (0, 1, 0), (1, 3, 2)]


def test_combine_is_the_same_however_many_shards_answered() -> None:
    generator = torch.Generator().manual_seed(1)
    topk_ids_TK = random_ids(9, 16, 4, seed=3)
    hidden_TD = torch.randn(9, 8, generator=generator, dtype=torch.bfloat16)
    weights_TK = torch.rand(9, 4, generator=generator)
    outputs = []
    for num_shards in (1, 2, 3, 8):
        plan = plan_rows(topk_ids_TK, np.arange(16, dtype=np.int32) % num_shards)
        rows_ND = torch.stack([hidden_TD[t] * (e + 1) for _, e, t in rows_in_order(plan)])
        outputs.append(combine(rows_ND, plan.row_of_slot, weights_TK, hidden_TD))
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


def test_combine_sums_in_slot_order_in_fp32_and_rounds_once() -> None:
    rows_ND = torch.tensor([[1.0], [2.0**-9], [2.0**-9]], dtype=torch.bfloat16)
    out_TD = combine(
        rows_ND, np.array([[0, 1, 2]]), torch.ones(1, 3), torch.zeros(1, 1, dtype=torch.bfloat16)
    )
    # Each small row alone would be lost in bfloat16; together they are one ulp.
    assert out_TD.item() == torch.tensor(1.0 + 2.0**-8).bfloat16().item()


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 64])
@pytest.mark.parametrize("num_shards", [1, 2, 3, 8])
def test_the_planner_in_c_gives_the_same_plan_number_for_number(
    num_tokens: int, num_shards: int
) -> None:
    planner = ModelBackend(load_expert_kernels("cpu"), load_model_kernels("cpu")).planner
    rng = np.random.default_rng(num_tokens)
    for owner_E in (
        np.arange(32, dtype=np.int32) * num_shards // 32,
        rng.integers(0, num_shards, 32, np.int32),
    ):
        topk_ids_TK = random_ids(num_tokens, 32, 4, seed=num_shards)
        ours, reference = planner(topk_ids_TK, owner_E), plan_rows(topk_ids_TK, owner_E)
        assert np.array_equal(ours.row_of_slot, reference.row_of_slot)
        assert [as_lists(shard) for shard in ours.shards] == [
            as_lists(shard) for shard in reference.shards
        ]


def as_lists(shard: ShardRows) -> list[object]:
    return [
        shard.shard_idx,
        None if shard.tokens is None else shard.tokens.tolist(),
        shard.expert_ids_G.tolist(),
        shard.row_offsets_G1.tolist(),
        shard.token_idx_N.tolist(),
        shard.first_row,
    ]
