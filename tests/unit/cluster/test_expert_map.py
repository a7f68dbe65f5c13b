"""The expert map as people are told of it."""

from __future__ import annotations

import numpy as np

from cluster.expert_map import BUSIEST, NO_PLACEMENT, describe_experts
from cluster.placement import Placement, ShardInfo
from cluster.types import PlacementVersion, ShardId

SHARDS = tuple(ShardInfo(ShardId(seat), f"unix:/{seat}", 100 + seat) for seat in (0, 7))


def placement(copies_LEC: list[list[list[int]]]) -> Placement:
    return Placement(PlacementVersion(2, 5), SHARDS, np.array(copies_LEC, np.int32))


def test_levels_are_roots_of_shares_of_the_busiest() -> None:
    told = describe_experts(None, np.array([[400.0, 100.0, 4.0, 0.0]]))
    assert list(told.levels_LE) == [BUSIEST, 128, 26, 0]  # a hundredth of the rows is a tenth
    assert told.max_rows == 400.0


def test_without_traffic_every_level_is_zero() -> None:
    told = describe_experts(None, np.zeros((2, 3)))
    assert told.levels_LE == bytes(6)
    assert told.max_rows == 0.0


def test_copies_are_named_by_shard_with_the_primary_first() -> None:
    told = describe_experts(placement([[[0, 1], [1, -1]]]), np.zeros((1, 2)))
    assert told.placement == "2.5"
    copies_LEC = np.frombuffer(told.copies_LEC, "<i2").reshape(1, 2, told.num_copies)
    assert copies_LEC.tolist() == [[[0, 7], [7, -1]]]


def test_places_for_copies_that_no_expert_has_are_left_out() -> None:
    told = describe_experts(placement([[[0, -1, -1], [1, -1, -1]]]), np.zeros((1, 2)))
    assert told.num_copies == 1
    assert np.frombuffer(told.copies_LEC, "<i2").tolist() == [0, 7]


def test_an_expert_without_a_shard_is_told() -> None:
    told = describe_experts(placement([[[-1], [1]]]), np.zeros((1, 2)))
    assert np.frombuffer(told.copies_LEC, "<i2").tolist() == [-1, 7]


def test_before_the_first_placement_nobody_holds_anything() -> None:
    told = describe_experts(None, np.zeros((2, 3)))
    assert (told.placement, told.num_copies) == (NO_PLACEMENT, 1)
    assert set(np.frombuffer(told.copies_LEC, "<i2").tolist()) == {-1}
