"""Orders about one shard: to kill it as a crash would, or to empty and replace it."""

from __future__ import annotations

import pytest

from cluster.errors import ConfigError, NoSuchShardError
from cluster.members import ShardState
from cluster.membership import Membership
from cluster.pool_actions import Kill
from cluster.pool_messages import Scale, Target
from tests.support.pool import NUM_EXPERTS, NUM_LAYERS, World


def settled_world(num_shards: int, num_replicas: int = 1) -> World:
    target = Target(num_shards, num_replicas)
    world = World(Membership(NUM_LAYERS, NUM_EXPERTS, Scale.of(target)))
    world.settle()
    return world


def test_a_kill_ends_that_shard_alone_and_its_seat_is_taken_again() -> None:
    world = settled_world(3)
    before = world.living
    key = world.pool.kill(1, None, world.now_s)
    assert key == before[1]
    assert Kill(key) in world.tick()
    assert set(before) - set(world.living) == {key}
    assert not world.pool.covered
    world.settle()
    assert [each.index for each in world.living] == [0, 1, 2]
    assert world.living[1].incarnation > key.incarnation


def test_a_kill_is_carried_out_once() -> None:
    world = settled_world(3)
    world.pool.kill(1, None, world.now_s)
    world.tick()
    assert world.wait(1.0) == []


def test_a_kill_is_told_among_the_failures() -> None:
    world = settled_world(2)
    world.pool.kill(0, None, world.now_s)
    assert world.pool.failures[-1].reason == "killed by hand"


@pytest.mark.parametrize(("shard", "incarnation"), [(9, None), (0, 999)])
def test_a_shard_that_does_not_serve_is_named_with_those_that_do(
    shard: int, incarnation: int | None
) -> None:
    world = settled_world(2)
    with pytest.raises(NoSuchShardError, match=r"These do: 0\.\d+, 1\.\d+"):
        world.pool.kill(shard, incarnation, world.now_s)
    with pytest.raises(NoSuchShardError):
        world.pool.drain(shard, incarnation)


def test_an_order_repeated_after_the_shard_was_replaced_is_refused() -> None:
    world = settled_world(2)
    key = world.pool.kill(1, None, world.now_s)
    world.settle()
    with pytest.raises(NoSuchShardError):
        world.pool.kill(1, key.incarnation, world.now_s)


def test_a_drained_shard_is_replaced_and_every_expert_is_covered_all_the_time() -> None:
    world = settled_world(3)
    old = world.living[1]
    assert world.pool.drain(1, old.incarnation) == old
    world.tick()
    states = {member.key: member.state for member in world.pool.members}
    assert states[old] is ShardState.DRAINING
    for _ in range(100):
        world.tick()
        for key in world.living:
            if key != old:
                world.load(key)
        world.now_s += 0.5
        assert world.pool.covered
        if old not in world.living and world.pool.settled:
            break
    assert old not in world.living
    assert [each.index for each in world.living] == [0, 1, 2]
    assert not world.pool.failures
    sizes = [int(world.holds(key).sum()) for key in world.living]
    assert max(sizes) - min(sizes) <= NUM_LAYERS


def test_a_drain_is_refused_when_the_others_are_too_few() -> None:
    alone, pair = settled_world(1), settled_world(2, num_replicas=2)
    with pytest.raises(ConfigError, match="0 others are there"):
        alone.pool.drain(0, None)
    with pytest.raises(ConfigError, match="as many others as copies, 2"):
        pair.pool.drain(0, None)


def test_a_change_of_scale_ends_a_drain() -> None:
    world = settled_world(3)
    old = world.living[1]
    world.pool.drain(1, None)
    world.tick()
    world.pool.scale_to(Target(4), "more")
    world.settle()
    assert old in world.living
    assert len(world.living) == 4


def test_a_drained_shard_that_dies_is_replaced_like_any_other() -> None:
    world = settled_world(3)
    world.pool.drain(1, None)
    world.tick()
    world.die(world.living[1])
    world.settle()
    assert [each.index for each in world.living] == [0, 1, 2]
