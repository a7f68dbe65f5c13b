"""Which copy of an expert is asked: any order of copies, losses, refusals and slowness."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cluster.placement import Placement, ShardInfo
from cluster.types import PlacementVersion, ShardId
from router.copies import Copies, ShardKey, key_of

SHARDS = tuple(ShardInfo(ShardId(index), f"fake:{index}", 1) for index in range(3))
KEYS = [key_of(shard) for shard in SHARDS]
COPIES_EC = [[0, 1, -1], [1, 0, -1], [2, 0, 1], [2, -1, -1]]


def copies_of(alive: set[ShardKey]) -> Copies:
    copies = Copies(alive.__contains__)
    copies_LEC = np.array([COPIES_EC, COPIES_EC[::-1]], np.int32)
    copies.apply(Placement(PlacementVersion(1, 1), SHARDS, copies_LEC))
    return copies


def test_a_slow_shard_is_asked_last_in_every_layer_and_for_what_nobody_else_has() -> None:
    copies = copies_of(set(KEYS))
    assert copies.first(0).tolist() == [0, 1, 2, 2]
    copies.ask_last({KEYS[0], KEYS[2]})
    assert copies.first(0).tolist() == [1, 1, 1, 2]
    assert copies.first(1).tolist() == [2, 1, 1, 1]
    assert copies.second(0).tolist() == [0, 0, 2, 2]
    copies.ask_last(set())
    assert copies.first(0).tolist() == [0, 1, 2, 2]


def test_elsewhere_is_another_living_shard_that_is_not_slow() -> None:
    alive = set(KEYS)
    copies = copies_of(alive)
    assert copies.elsewhere(0, KEYS[0]).tolist() == [1, 1, 2, 2]
    assert copies.elsewhere(0, KEYS[2]).tolist() == [0, 1, 0, -1]
    copies.ask_last({KEYS[1]})
    assert copies.elsewhere(0, KEYS[0]).tolist() == [-1, -1, 2, 2]
    alive.remove(KEYS[2])
    copies.changed()
    assert copies.elsewhere(0, KEYS[0]).tolist() == [-1] * 4
    assert copies.elsewhere(0, (9, 9)).tolist() == [0, 0, 0, -1]


def test_a_shard_is_not_asked_for_what_it_said_not_to_hold_until_its_time_is_over() -> None:
    copies = copies_of(set(KEYS))
    copies.absent(KEYS[2], 0, np.array([2, 3], np.int32), until_s=5.0)
    assert copies.first(0).tolist() == [0, 1, 0, -1]
    assert copies.elsewhere(0, KEYS[0]).tolist() == [1, 1, 1, -1]
    copies.tend(4.9)
    assert copies.first(0).tolist() == [0, 1, 0, -1]
    copies.tend(5.0)
    assert copies.first(0).tolist() == [0, 1, 2, 2]


def test_a_large_batch_is_spread_over_living_copies_that_are_not_slow() -> None:
    copies = copies_of(set(KEYS))
    ids = np.repeat([[0, 2]], 2000, axis=0)
    ids[:1000, 0] = 3
    assert copies.spread(0, ids).tolist() == [1, 1, 0, 2]
    copies.ask_last({KEYS[1]})
    assert copies.spread(0, ids).tolist() == [0, 0, 2, 2]
    assert copies.spread(0, ids[:100]).tolist() == copies.first(0).tolist()


@given(alive=st.sets(st.sampled_from(KEYS)), slow=st.sets(st.sampled_from(KEYS)))
def test_the_first_copy_is_the_first_that_lives_and_slow_ones_come_after_the_others(
    alive: set[ShardKey], slow: set[ShardKey]
) -> None:
    copies = copies_of(alive)
    copies.ask_last(slow)
    for expert, places in enumerate(COPIES_EC):
        living = [place for place in places if place >= 0 and KEYS[place] in alive]
        ranked = sorted(living, key=lambda place: KEYS[place] in slow)
        assert copies.first(0)[expert] == (ranked[0] if ranked else -1)
        assert copies.second(0)[expert] == (ranked[:2][-1] if ranked else -1)
