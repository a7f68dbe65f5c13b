"""Calls of many ranks in one product: each gets the bits it would get alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.model_config import AfmoeConfig
from cluster.types import PlacementVersion
from cluster.wire import CallId, ExpertCall
from experts.shard import ExpertShard
from tests.conftest import TINY_CONFIG
from tests.support.shards import random_shard, random_store, reference_fingerprint

HELD = range(4, 12)
MODEL = reference_fingerprint(TINY_CONFIG).model
SHARD = random_shard(TINY_CONFIG, HELD, shard_id=2)


def call_of(
    rows_of_experts: Sequence[tuple[int, Sequence[int]]],
    *,
    rank: int = 0,
    layer: int = 1,
    num_tokens: int = 4,
) -> ExpertCall:
    """A call that asks experts for rows of tokens: (expert, tokens)."""
    token_idx = [token for _, tokens in rows_of_experts for token in tokens]
    ends = np.cumsum([0] + [len(tokens) for _, tokens in rows_of_experts])
    random = torch.Generator().manual_seed(rank)
    return ExpertCall(
        CallId(rank, 1, 0, 0, layer, 0),
        MODEL,
        PlacementVersion(1, 1),
        1_000_000,
        np.array([expert for expert, _ in rows_of_experts], np.int32),
        ends.astype(np.int32),
        np.array(token_idx, np.int32),
        torch.randn(num_tokens, TINY_CONFIG.hidden_size, generator=random),
    )


rows_of_expert = st.tuples(
    st.sampled_from(HELD), st.lists(st.integers(0, 3), min_size=0, max_size=5)
)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(rows_of_expert, min_size=1, max_size=5), min_size=2, max_size=5))
def test_rows_of_shared_products_are_those_of_calls_alone_in_request_order(
    asked: list[list[tuple[int, list[int]]]],
) -> None:
    calls = [call_of(rows, rank=rank) for rank, rows in enumerate(asked)]
    together = SHARD.compute(calls)
    for call, rows_ND in zip(calls, together, strict=True):
        assert torch.equal(rows_ND, SHARD.compute([call])[0])


def test_rows_of_unaligned_frames_have_the_bits_of_aligned_ones() -> None:
    call = call_of([(4, [0, 1, 2]), (9, [3, 0])])
    expected = SHARD.compute([call])[0]
    for shift in (8, 24):
        room = torch.empty(call.hidden_TD.nbytes + shift, dtype=torch.uint8)
        moved_TD = room[shift:].view(torch.float32).view(call.hidden_TD.shape)
        moved_TD.copy_(call.hidden_TD)
        assert torch.equal(SHARD.compute([replaced(call, moved_TD)])[0], expected)


def replaced(call: ExpertCall, hidden_TD: torch.Tensor) -> ExpertCall:
    return ExpertCall(
        call.call_id,
        call.model,
        call.placement_version,
        call.budget_us,
        call.expert_ids_G,
        call.row_offsets_G1,
        call.token_idx_N,
        hidden_TD,
    )


@pytest.mark.parametrize(
    ("call", "code", "words"),
    [
        (call_of([(3, [0])]), "expert_not_held", "experts [3] of MoE layer 1"),
        (call_of([(4, [0]), (12, [0]), (60, [1])]), "expert_not_held", "[12, 60]"),
        (call_of([(4, [0])], layer=5), "malformed_frame", "5 MoE layers"),
    ],
)
def test_a_call_that_cannot_be_computed_is_answered_with_the_reason(
    call: ExpertCall, code: str, words: str
) -> None:
    error = SHARD.check(call)
    assert error is not None
    assert (error.call_id, error.code) == (call.call_id, code)
    assert words in error.message
    assert error.placement_version == SHARD.placement_version


def test_a_call_that_fits_is_not_refused() -> None:
    assert SHARD.check(call_of([(4, [0]), (11, [1])])) is None


def test_an_expert_that_comes_and_goes_is_noticed_by_refresh(tiny_config: AfmoeConfig) -> None:
    shard: ExpertShard = random_shard(tiny_config, [0])
    call = call_of([(1, [0])])
    assert shard.check(call) is not None
    for layer, table in enumerate(random_store(tiny_config, [1]).tables):
        shard.store.tables[layer].put(1, *table.weights(1))  # type: ignore[attr-defined]
    shard.refresh()
    assert shard.check(call) is None
    shard.store.tables[1].drop(1)
    shard.refresh()
    assert shard.check(call) is not None


def test_a_reply_says_how_long_it_waited_and_was_computed() -> None:
    call = call_of([(4, [0])])
    reply = SHARD.reply(call, SHARD.compute([call])[0], queue_s=0.25, took_s=0.002)
    assert (reply.call_id, reply.shard_incarnation) == (call.call_id, 77)
    assert (reply.queue_us, reply.compute_us) == (250_000, 2_000)
