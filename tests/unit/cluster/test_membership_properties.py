"""Random orders of events: what the pool says and does is true and safe after each of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.membership import Membership
from cluster.pool_messages import Scale, Target
from tests.support.pool import EXPERT_BYTES, NUM_EXPERTS, NUM_LAYERS, World

EVENTS = [
    "load",
    "die",
    "suspect",
    "stall",
    "clear",
    "scale",
    "pass",
    "restart",
    "hot",
    "node",
    "heal",
]
events = st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 23)), max_size=40)


def new_world() -> World:
    pool = Membership(NUM_LAYERS, NUM_EXPERTS, Scale.of(Target(3, 2)))
    return World(pool, nodes=["node-a", "node-b", "node-c"])


def restarted(world: World) -> Membership:
    """A pool that finds the shards of another, which died."""
    pool = Membership(NUM_LAYERS, NUM_EXPERTS, Scale.of(Target(3, 2)))
    ready = [key for key in world.living if world.shards[key].ready]
    starting = [key for key in world.living if not world.shards[key].ready]
    pool.adopt([world.report(key) for key in ready], starting)
    # Ranks remember what no shard survived to tell.
    if world.last is not None:
        pool.outbid(world.last.epoch)
    return pool


def happen(world: World, what: str, choice: int) -> None:
    pool, living = world.pool, world.living
    if what == "scale":
        num_shards, further_bytes = choice % 6 + 1, (choice % 4) * EXPERT_BYTES
        num_replicas = min(choice // 6 + 1, num_shards, 3)
        pool.scale_to(Target(num_shards, num_replicas, further_bytes), str(choice))
    elif what == "pass":
        world.now_s += choice / 2
    elif what == "node" and len(world.nodes) > 1:
        world.lose_node(world.nodes[choice % len(world.nodes)])
    elif what == "heal":
        world.nodes.append(f"node-{len(world.nodes)}-{world.now_s}")
    elif what == "hot":
        load_LE = np.ones((NUM_LAYERS, NUM_EXPERTS))
        load_LE[:, choice % NUM_EXPERTS] = 30.0
        pool.rebalance(load_LE, max_moves=choice)
    elif what == "restart":
        world.pool = restarted(world)
    elif living:
        key = living[choice % len(living)]
        shard = world.shards[key]
        if what == "load":
            world.load(key)
        elif what == "die":
            world.die(key)
        elif what == "suspect":
            pool.suspected(key.index, key.incarnation, "silent", world.now_s)
        elif shard.ready:
            idle_s = 9.0 if what == "stall" else 0.0
            pool.reported(replace(world.report(key), idle_s=idle_s), world.now_s)


@settings(max_examples=300, deadline=None)
@given(events)
def test_whatever_happens_nothing_false_is_said_and_no_seat_is_doubled(
    history: list[tuple[str, int]],
) -> None:
    live_through(history)


def live_through(history: list[tuple[str, int]]) -> None:
    world = new_world()
    world.tick()
    for what, choice in history:
        happen(world, what, choice)
        world.tick()


@pytest.mark.slow
@settings(max_examples=5000, deadline=None)
@given(events)
def test_thousands_of_histories_end_without_a_false_word(history: list[tuple[str, int]]) -> None:
    live_through(history)


@settings(max_examples=100, deadline=None)
@given(events)
def test_after_any_history_the_wanted_shards_come_to_serve(history: list[tuple[str, int]]) -> None:
    world = new_world()
    for what, choice in history:
        happen(world, what, choice)
        world.tick()
    world.now_s += 20.0
    world.settle()
    assert world.pool.covered
    placement = world.pool.placement
    assert placement is not None
    assert len(placement.shards) == world.pool.scale.target.num_shards
    num_replicas = world.pool.scale.target.num_replicas
    assert (placement.copies_LEC[:, :, :num_replicas] >= 0).all()
    part_if_possible(world)


def test_an_expert_that_comes_by_an_earlier_pool_s_order_is_freed_again() -> None:
    world, restart = new_world(), ("restart", 0)
    for what, choice in [("load", 0), ("load", 0), ("scale", 15), restart, ("load", 1), restart]:
        happen(world, what, choice)
        world.tick()
    world.now_s += 20.0
    world.settle()


def part_if_possible(world: World) -> None:
    """Copies share no node when no node has more seats than its share."""
    num_shards, num_replicas = (
        world.pool.scale.target.num_shards,
        world.pool.scale.target.num_replicas,
    )
    largest = max(len(world.on_node(name)) for name in world.nodes)
    if largest * num_replicas <= num_shards and NUM_EXPERTS * num_replicas % num_shards == 0:
        assert world.together() == 0
