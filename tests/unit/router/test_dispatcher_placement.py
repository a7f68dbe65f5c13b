"""Placements that change, come late or lack something, and any order of events."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import LinkLostError, NotReadyError
from cluster.metrics import Metric
from router.config import DispatchConfig
from tests.fakes.shard_world import FakeRank, FakeShard, World, placement_of, wanted_rows
from tests.support.dispatching import (
    ALTERNATING,
    NUM_EXPERTS,
    REPLICATED,
    assert_rows_are_right,
    nothing_is_open,
    two_shards,
)

RING = [[expert % 3, (expert + 1) % 3] for expert in range(NUM_EXPERTS)]
EVENTS = ("kill", "blip", "silence", "restart", "swap", "late", "not held")


def test_a_placement_that_comes_while_rows_are_away_takes_them_from_a_shard_it_dropped(
    rank: FakeRank,
) -> None:
    first, second = two_shards(rank, ALTERNATING)
    first.answers.append(first.ignore)
    everything_on_second = [[0]] * NUM_EXPERTS
    newer = placement_of([second], everything_on_second, counter=2)
    rank.world.later(0.1, lambda: rank.dispatcher.publish(newer))
    start_s = rank.world.now_s
    assert_rows_are_right(rank)
    assert rank.world.now_s - start_s < 1.0
    assert first.links[0].closed


def test_a_placement_that_keeps_the_shard_leaves_its_rows_in_flight_alone(rank: FakeRank) -> None:
    first, second = two_shards(rank, ALTERNATING)
    first.answers.append(first.late(0.3))
    newer = placement_of([second, first], [[1 - place] for [place] in ALTERNATING], counter=2)
    rank.world.later(0.1, lambda: rank.dispatcher.publish(newer))
    assert_rows_are_right(rank)
    assert rank.metrics[Metric.DISPATCH_RETRIES] == 0
    rank.dispatcher.begin_step()
    assert_rows_are_right(rank)
    assert len(first.calls) == len(second.calls) == 2
    assert first.calls[-1].placement_version == newer.version


def test_an_older_placement_that_is_published_later_changes_nothing(rank: FakeRank) -> None:
    first, second = two_shards(rank, ALTERNATING)
    rank.dispatcher.publish(placement_of([first, second], ALTERNATING, counter=3))
    rank.dispatcher.publish(placement_of([first], [[0]] * NUM_EXPERTS, counter=2))
    rank.dispatcher.begin_step()
    assert_rows_are_right(rank)
    assert second.calls[-1].placement_version.counter == 3


def test_a_step_starts_under_the_newest_of_the_placements_published_since(rank: FakeRank) -> None:
    first, second = two_shards(rank, ALTERNATING)
    rank.dispatcher.publish(placement_of([first], [[0]] * NUM_EXPERTS, counter=2))
    rank.dispatcher.publish(placement_of([second], [[0]] * NUM_EXPERTS, counter=3))
    rank.dispatcher.begin_step()
    assert_rows_are_right(rank)
    assert (len(first.calls), len(second.calls)) == (0, 1)


def test_a_step_before_the_first_placement_waits_for_it(rank: FakeRank) -> None:
    shards = [rank.world.add(0), rank.world.add(1)]
    placement = placement_of(shards, ALTERNATING)
    rank.world.later(1.0, lambda: rank.dispatcher.publish(placement))
    rank.dispatcher.begin_step()
    assert_rows_are_right(rank)


def test_a_step_without_any_placement_is_refused_after_the_grace_time(rank: FakeRank) -> None:
    assert rank.dispatcher.missing() == ["no placement has been published yet"]
    with pytest.raises(NotReadyError, match="no placement"):
        rank.dispatcher.begin_step()


def test_a_lost_shard_whose_experts_have_copies_leaves_the_rank_ready(rank: FakeRank) -> None:
    first, second = two_shards(rank, REPLICATED)
    assert rank.dispatcher.missing() == []
    first.die()
    rank.dispatcher.wait(0.1)
    assert rank.dispatcher.missing() == []
    second.die()
    rank.dispatcher.wait(0.1)
    assert len(rank.dispatcher.missing()) == 2


def test_a_placement_that_lacks_an_expert_is_said_to(rank: FakeRank) -> None:
    two_shards(rank, [*ALTERNATING[:-1], []])
    assert rank.dispatcher.missing() == ["the placement does not cover every expert"]


def happen(event: str, index: int, rank: FakeRank, shards: list[FakeShard]) -> None:
    """Let one thing befall a shard; whatever it is, the shard is back some time later."""
    world, shard = rank.world, shards[index]
    if event == "blip":
        for link in shard.links:
            shard.say(link, LinkLostError(link.peer, "reset"), after_s=0.0)
    elif event == "silence":
        shard.silent = True
        world.later(2.5, lambda: setattr(shard, "silent", False))
    elif event == "kill":
        shard.die()
        world.later(1.0, lambda: setattr(shard, "reachable", True))
    elif event == "late":
        shard.answers.append(shard.late(1.2))
    elif event == "not held":
        shard.answers.append(shard.error("expert_not_held"))
    else:
        if event == "restart":
            shard.die()
            shards[index] = world.add(shard.shard_id, shard.incarnation + 1)
        order = shards[::-1] if event == "swap" else shards
        rank.dispatcher.publish(
            replace(placement_of(order, RING, next(world.counters)), num_ranks=2)
        )


@settings(max_examples=60, deadline=None)
@given(
    plot=st.lists(
        st.tuples(st.floats(0.0, 3.0), st.sampled_from(EVENTS), st.integers(0, 2)), max_size=12
    ),
    seed=st.integers(0, 1000),
)
def test_no_order_of_events_changes_a_row_or_leaves_something_open(
    plot: list[tuple[float, str, int]], seed: int
) -> None:
    world = World()
    rank = FakeRank(world, DispatchConfig(call_timeout_s=2.0, coverage_grace_s=30.0))
    shards = [world.add(index) for index in range(3)]
    rank.dispatcher.publish(replace(placement_of(shards, RING), num_ranks=2))
    for after_s, event, index in plot:
        world.later(after_s, partial(happen, event, index, rank, shards))
    random = np.random.default_rng(seed)
    for _ in range(4):
        rank.dispatcher.begin_step()
        for layer in range(2):
            ids = np.stack([random.permutation(NUM_EXPERTS)[:3] for _ in range(5)])
            hidden = torch.from_numpy(random.standard_normal((5, 4), np.float32))
            assert torch.equal(rank.layer(hidden, ids, layer), wanted_rows(hidden, ids, layer))
            world.now_s += 0.2
        assert nothing_is_open(rank)
    rank.dispatcher.close()
    assert all(link.closed for shard in world.shards.values() for link in shard.links)
