"""A node goes with its shards: they come back on those that are left, and copies stay apart."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.members import ShardState
from cluster.membership import Membership
from cluster.pool_actions import Kill, Publish, Spawn
from cluster.pool_messages import Scale, Target
from cluster.roster import SUSPECT_S
from tests.support.pool import NUM_EXPERTS, NUM_LAYERS, World


def running(num_shards: int, num_replicas: int, num_nodes: int) -> World:
    pool = Membership(NUM_LAYERS, NUM_EXPERTS, Scale.of(Target(num_shards, num_replicas)))
    world = World(pool, nodes=[f"node-{index}" for index in range(num_nodes)])
    world.settle()
    return world


@pytest.mark.parametrize(("num_shards", "num_nodes"), [(4, 2), (6, 3), (5, 3), (8, 4)])
def test_the_loss_of_any_node_uncovers_nothing_when_there_are_two_copies(
    num_shards: int, num_nodes: int
) -> None:
    for victim in range(num_nodes):
        world = running(num_shards, 2, num_nodes)
        assert world.together() == 0
        world.lose_node(f"node-{victim}")
        actions = world.tick()
        [placement] = [each.placement for each in actions if isinstance(each, Publish)]
        assert world.pool.covered
        assert placement.covered
        lost = num_shards - len(placement.shards)
        # Its shards start elsewhere in the same turn.
        assert len([each for each in actions if isinstance(each, Spawn)]) == lost > 0


def test_after_the_loss_of_a_node_copies_come_to_lie_apart_on_those_that_are_left() -> None:
    world = running(6, 2, 3)
    world.lose_node("node-1")
    world.settle()
    assert world.pool.covered
    assert world.together() == 0
    assert {world.shards[key].node for key in world.living} == {"node-0", "node-2"}


def test_on_the_last_node_two_copies_are_at_least_in_two_processes() -> None:
    world = running(4, 2, 2)
    world.lose_node("node-0")
    world.settle()
    placement = world.pool.placement
    assert placement is not None
    assert (placement.copies_LEC[:, :, 0] != placement.copies_LEC[:, :, 1]).all()
    assert (placement.copies_LEC >= 0).all()


def test_a_node_that_comes_back_gets_copies_again_once_shards_start_there() -> None:
    world = running(4, 2, 2)
    world.lose_node("node-0")
    world.settle()
    world.nodes.append("node-new")
    for key in world.on_node("node-1")[:2]:
        world.die(key)
        world.tick()
    world.settle()
    assert world.together() == 0


def test_without_replicas_the_experts_of_a_lost_node_come_back_with_their_shards() -> None:
    world = running(4, 1, 2)
    world.lose_node("node-0")
    world.tick()
    assert not world.pool.covered
    assert world.pool.num_uncovered == NUM_LAYERS * NUM_EXPERTS // 2
    world.load_all()
    world.tick()
    assert world.pool.covered


def test_shards_of_a_node_that_is_cut_off_are_replaced_only_when_ray_counts_it_as_dead() -> None:
    world = running(4, 2, 2)
    cut = world.on_node("node-0")
    for key in cut:
        world.pool.suspected(key.index, key.incarnation, "connection lost", world.now_s)
    world.now_s += SUSPECT_S
    actions = world.pool.actions(world.now_s)
    assert [each.key for each in actions if isinstance(each, Kill)] == cut
    assert not [each for each in actions if isinstance(each, Spawn)]
    [placement] = [each.placement for each in actions if isinstance(each, Publish)]
    assert placement.covered
    assert world.pool.covered
    states = {member.key: member.state for member in world.pool.members}
    assert all(states[key] is ShardState.DEAD for key in cut)
    world.lose_node("node-0")
    assert len([each for each in world.tick() if isinstance(each, Spawn)]) == len(cut)
    world.settle()


def test_losing_node_after_node_never_doubles_a_copy_in_one_process() -> None:
    world = running(6, 3, 4)
    for victim in ("node-0", "node-2", "node-1"):
        world.lose_node(victim)
        world.settle()
        placement = world.pool.placement
        assert placement is not None
        ordered_LEC = np.sort(placement.copies_LEC, axis=2)
        assert (np.diff(ordered_LEC, axis=2) > 0).all()
        assert world.pool.covered
