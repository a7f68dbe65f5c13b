"""Large batches spread over copies, small ones stay with the first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from router.plan import Int32, Int64
from router.spill import LEAST_ROWS, MARGIN, ROWS_PER_EXPERT, spread
from tests.fakes.shard_world import FakeRank, wanted_rows
from tests.support.dispatching import NUM_EXPERTS, REPLICATED, two_shards

NUM_SHARDS = 3
RING_EC: Int32 = np.array([[e % 3, (e + 1) % 3] for e in range(6)], np.int32)


def loads(rows_E: Int64, owner_E: Int32) -> list[float]:
    return [float(rows_E[owner_E == shard].sum()) for shard in range(NUM_SHARDS)]


def test_a_shard_far_above_the_mean_gives_rows_to_other_copies() -> None:
    rows_E = np.array([600, 10, 10, 500, 10, 10])
    assert loads(rows_E, RING_EC[:, 0]) == [1100.0, 20.0, 20.0]
    assert max(loads(rows_E, spread(rows_E, RING_EC, NUM_SHARDS))) <= 610.0


@pytest.mark.parametrize(
    "rows_E",
    [
        np.array([ROWS_PER_EXPERT - 1, 0, 0, ROWS_PER_EXPERT - 1, 0, 0]),
        np.array([120, 100, 100, 120, 100, 100]),
        np.zeros(6, np.int64),
    ],
    ids=["few rows", "even rows", "no rows"],
)
def test_first_copies_stay_where_reading_dominates_or_nobody_is_far_above_the_mean(
    rows_E: Int64,
) -> None:
    assert np.array_equal(spread(rows_E, RING_EC, NUM_SHARDS), RING_EC[:, 0])


def test_what_only_one_shard_holds_stays_there() -> None:
    ranked_EC = np.array([[0, -1], [0, 1], [-1, -1]], np.int32)
    rows_E = np.array([500, 400, 300])
    assert spread(rows_E, ranked_EC, NUM_SHARDS).tolist() == [0, 1, -1]


@given(
    rows=st.lists(st.integers(0, 400), min_size=12, max_size=12),
    seed=st.integers(0, 1000),
)
def test_every_row_goes_to_a_copy_and_the_busiest_shard_never_gets_more(
    rows: list[int], seed: int
) -> None:
    random, rows_E = np.random.default_rng(seed), np.array(rows)
    ranked_EC = np.stack([random.permutation(NUM_SHARDS) for _ in rows]).astype(np.int32)
    for expert in range(len(rows)):
        ranked_EC[expert, random.integers(1, NUM_SHARDS + 1) :] = -1
    chosen_E = spread(rows_E, ranked_EC, NUM_SHARDS)
    assert all(chosen_E[expert] in copies for expert, copies in enumerate(ranked_EC))
    assert (chosen_E >= 0).all()
    first_E = ranked_EC[:, 0]
    assert max(loads(rows_E, chosen_E)) <= max(loads(rows_E, first_E))
    if not np.array_equal(chosen_E, first_E):
        assert max(loads(rows_E, first_E)) >= MARGIN * rows_E.sum() / NUM_SHARDS


def asked(rank: FakeRank, num_tokens: int) -> list[int]:
    """Send rows that all want experts of the first shard; return the rows of both shards."""
    shards = two_shards(rank, REPLICATED)
    random = np.random.default_rng(1)
    even = np.arange(0, NUM_EXPERTS, 2)
    ids = np.stack([random.permutation(even)[:2] for _ in range(num_tokens)])
    hidden = torch.from_numpy(random.standard_normal((num_tokens, 4), np.float32))
    assert torch.equal(rank.layer(hidden, ids), wanted_rows(hidden, ids, 0))
    return [sum(len(call.token_idx_N) for call in shard.calls) for shard in shards]


def test_a_small_batch_stays_with_the_first_copies(rank: FakeRank) -> None:
    few = LEAST_ROWS // 2 - 1
    assert asked(rank, few) == [2 * few, 0]


def test_the_rows_of_a_large_batch_come_from_both_copies(rank: FakeRank) -> None:
    first, second = asked(rank, LEAST_ROWS)
    assert first + second == 2 * LEAST_ROWS
    assert min(first, second) > LEAST_ROWS // 2
