"""The pool's view of its shards, without Ray and with time passed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from cluster.errors import ConfigError
from cluster.holdings import DRAIN_S
from cluster.members import ShardState
from cluster.membership import Membership
from cluster.placement import Placement
from cluster.pool_actions import Action, Hold, Kill, Publish, Spawn
from cluster.pool_messages import HoldsLE, Scale, ShardKey, ShardReport, SumsLE, Target
from cluster.roster import KILL_AGAIN_S, SUSPECT_S, UNLISTED_S
from cluster.scale_operation import Phase
from cluster.scaling import TRIES_BEFORE_ROLL_BACK
from tests.support.pool import NUM_EXPERTS, NUM_LAYERS, World, sums_of


def membership(num_shards: int = 2, num_replicas: int = 1) -> Membership:
    return Membership(NUM_LAYERS, NUM_EXPERTS, Scale.of(Target(num_shards, num_replicas)))


def report(
    key: ShardKey,
    holds_LE: HoldsLE | None = None,
    *,
    epoch: int = 1,
    scale: Scale | None = None,
    loaded: int = 100,
) -> ShardReport:
    """A ready report, or of one that still loads when `holds_LE` is None."""
    scale = scale or Scale.of(Target(2))
    sums_LE: SumsLE | None = None if holds_LE is None else sums_of(holds_LE)
    ready = holds_LE is not None
    address = f"unix:/{key.incarnation}"
    return ShardReport(key, ready, loaded, 100, address, "node", epoch, scale, sums_LE=sums_LE)


def spawns(actions: Sequence[Action]) -> list[Spawn]:
    return [action for action in actions if isinstance(action, Spawn)]


def spawned(actions: Sequence[Action]) -> list[ShardKey]:
    return [action.key for action in spawns(actions)]


def published(actions: Sequence[Action]) -> list[Placement]:
    return [action.placement for action in actions if isinstance(action, Publish)]


def killed(actions: Sequence[Action]) -> list[ShardKey]:
    return [action.key for action in actions if isinstance(action, Kill)]


def orders(actions: Sequence[Action]) -> list[Hold]:
    return [action for action in actions if isinstance(action, Hold)]


def running(num_shards: int = 2, num_replicas: int = 1) -> tuple[Membership, World]:
    """A pool whose shards are all ready and published."""
    world = World(membership(num_shards, num_replicas))
    world.settle()
    return world.pool, world


def test_a_first_start_spawns_every_seat_once_with_what_it_is_to_load() -> None:
    pool = membership(4)
    actions = spawns(pool.actions(0.0))
    assert [action.key.index for action in actions] == [0, 1, 2, 3]
    holders_SLE = np.stack([action.holds_LE for action in actions])
    assert (holders_SLE.sum(axis=0) == 1).all()
    assert pool.actions(0.0) == []


def test_nothing_is_published_before_a_shard_is_ready_and_coverage_is_told_truly() -> None:
    pool = membership(2)
    first, second = spawns(pool.actions(0.0))
    pool.reported(report(first.key))
    assert published(pool.actions(0.0)) == []
    pool.reported(report(first.key, first.holds_LE))
    (partial,) = published(pool.actions(0.0))
    assert (partial.covered, pool.covered) == (False, False)
    pool.reported(report(second.key, second.holds_LE))
    (whole,) = published(pool.actions(0.0))
    assert (whole.covered, pool.covered) == (True, True)
    assert whole.version > partial.version


def test_a_dead_shard_is_unplaced_at_once_and_tried_again_under_a_new_incarnation() -> None:
    pool, world = running()
    first, second = world.living
    world.die(second)
    actions = pool.actions(1.0)
    (key,) = spawned(actions)
    assert key.index == second.index
    assert key.incarnation > max(first.incarnation, second.incarnation)
    (placement,) = published(actions)
    assert [shard.incarnation for shard in placement.shards] == [first.incarnation]
    assert pool.failures[-1].shard == second.index


def test_with_replicas_the_loss_of_any_one_shard_uncovers_nothing() -> None:
    for victim in range(3):
        pool, world = running(3, num_replicas=2)
        world.die(world.living[victim])
        (placement,) = published(pool.actions(1.0))
        assert placement.covered
        assert pool.covered


def test_a_late_report_of_a_dead_incarnation_changes_nothing() -> None:
    pool, world = running()
    victim = world.living[1]
    late = world.report(victim)
    world.die(victim)
    pool.actions(1.0)
    pool.reported(late)
    assert not pool.covered
    assert pool.actions(1.0) == []


def test_a_shard_that_dies_while_loading_is_tried_again_with_growing_pauses() -> None:
    pool = membership(1)
    (key,) = spawned(pool.actions(0.0))
    pool.died(key, now_s=0.0)
    assert spawned(pool.actions(0.9)) == []
    (key,) = spawned(pool.actions(1.0))
    pool.died(key, now_s=1.0)
    assert spawned(pool.actions(2.9)) == []
    assert len(spawned(pool.actions(3.0))) == 1


def test_a_suspect_keeps_serving_last_and_is_cleared_by_its_own_turns() -> None:
    pool, world = running(2, num_replicas=2)
    suspect, other = world.living
    pool.suspected(suspect.index, suspect.incarnation, "silent for 1.2 s", now_s=1.0)
    (placement,) = published(pool.actions(1.0))
    assert (placement.copies_LEC[:, :, 0] == other.index).all()
    pool.reported(replace(world.report(suspect), idle_s=0.1), now_s=1.2)
    (placement,) = published(pool.actions(1.2))
    assert set(placement.primary_LE.ravel().tolist()) == {0, 1}
    assert pool.actions(1.2 + SUSPECT_S) == []


def test_a_suspect_that_shows_no_turn_is_ended_and_replaced_only_when_it_is_gone() -> None:
    pool, world = running()
    suspect = world.living[0]
    pool.suspected(suspect.index, suspect.incarnation, "silent for 1.2 s", now_s=1.0)
    pool.reported(replace(world.report(suspect), idle_s=5.0), now_s=1.1)
    actions = pool.actions(1.0 + SUSPECT_S)
    assert killed(actions) == [suspect]
    assert spawned(actions) == []
    assert pool.actions(3.0) == []
    pool.died(suspect, 3.5)
    (key,) = spawned(pool.actions(3.5))
    assert key.index == suspect.index


def test_a_shard_that_does_not_end_is_told_again() -> None:
    pool, world = running()
    suspect = world.living[0]
    pool.suspected(suspect.index, suspect.incarnation, "silent", now_s=0.0)
    assert killed(pool.actions(SUSPECT_S)) == [suspect]
    assert killed(pool.actions(SUSPECT_S + KILL_AGAIN_S - 0.1)) == []
    assert killed(pool.actions(SUSPECT_S + KILL_AGAIN_S)) == [suspect]


def test_a_suspicion_of_an_earlier_life_is_ignored() -> None:
    pool, world = running()
    pool.suspected(0, world.living[0].incarnation + 9, "late", now_s=1.0)
    assert pool.actions(1.0) == []


def test_a_loop_without_turns_is_suspected_without_any_rank() -> None:
    pool, world = running()
    pool.reported(replace(world.report(world.living[0]), idle_s=5.0), now_s=1.0)
    assert pool.members[0].state is ShardState.SUSPECT
    assert not pool.covered


def test_scaling_up_moves_only_what_the_new_shard_gets_and_frees_it_later() -> None:
    pool, world = running(2)
    before = {key: world.holds(key) for key in world.living}
    pool.scale_to(Target(4), "op-1")
    for seat in (2, 3):  # in turn: who serves is to have cores left
        assert [key.index for key in spawned(world.tick())] == [seat]
        world.load_all()
    actions = world.tick()
    (placement,) = published(actions)
    assert placement.covered
    assert len(placement.shards) == 4
    assert orders(actions) == []
    for key, holds_LE in before.items():
        assert (world.holds(key) == holds_LE).all()
    world.wait(DRAIN_S - 1.0)
    for key, holds_LE in before.items():
        assert (world.holds(key) == holds_LE).all()
    world.settle()
    assert pool.operation is not None
    assert pool.operation.phase is Phase.DONE
    assert [world.holds(key).sum() for key in world.living] == [4 * NUM_LAYERS // 2] * 4


def test_scaling_down_drains_before_it_ends_and_never_uncovers() -> None:
    pool, world = running(4)
    leaving = world.living[2:]
    pool.scale_to(Target(2), "op-1")
    told = orders(world.tick())
    assert {order.key.index for order in told} == {0, 1}
    assert [member.state for member in pool.members[2:]] == [ShardState.DRAINING] * 2
    assert world.wait(DRAIN_S * 2) == []
    world.load_all()
    world.tick()
    world.wait(DRAIN_S)
    ended = world.wait(UNLISTED_S + 1.0)
    assert sorted(ended) == leaving
    world.settle()
    assert pool.settled


def test_a_shard_never_holds_more_than_its_larger_plan_and_one_expert() -> None:
    _, world = running(3, num_replicas=2)
    for num_shards in (5, 2, 4):
        room = {key: int(world.holds(key).sum()) for key in world.living}
        world.peaks.clear()
        world.pool.scale_to(Target(num_shards, 2), f"to-{num_shards}")
        world.settle()
        for key in world.living:
            largest = max(room.get(key, 0), int(world.holds(key).sum()))
            assert world.peaks[key] <= largest + 1


def test_the_same_operation_twice_is_one_and_the_same_target_too() -> None:
    pool, world = running(2)
    operation = pool.scale_to(Target(3), "a")
    assert pool.scale_to(Target(3), "a") is operation
    assert pool.scale_to(Target(3), "b") is operation
    assert len(spawned(world.tick())) == 1
    assert world.tick() == []


def test_a_scale_whose_new_shard_cannot_start_is_rolled_back_with_the_reason() -> None:
    pool, world = running(2)
    pool.scale_to(Target(3), "a")
    for _ in range(TRIES_BEFORE_ROLL_BACK):
        (key,) = spawned(world.tick())
        pool.reported(replace(report(key), problem="no such file"), world.now_s)
        world.die(key)
        world.now_s += 20.0
    assert pool.operation is not None
    assert pool.operation.phase is Phase.ROLLING_BACK
    world.settle()
    assert (pool.operation.phase, pool.scale.target) == (Phase.ROLLED_BACK, Target(2))
    assert "no such file" in pool.operation.error
    assert pool.settled


def test_bytes_that_differ_from_the_serving_copy_are_never_placed() -> None:
    pool, world = running(1)
    pool.scale_to(Target(2), "a")
    (spawn,) = spawns(world.tick())
    wrong = replace(report(spawn.key, spawn.holds_LE), sums_LE=sums_of(spawn.holds_LE) + 1)
    pool.reported(wrong)
    placement = published(pool.actions(0.0))[-1]
    assert (placement.primary_LE == 0).all()
    assert pool.operation is not None
    assert "differ" in pool.operation.error
    assert pool.scale.target == Target(1)


def test_an_impossible_scale_is_refused_and_changes_nothing() -> None:
    pool, _ = running(2)
    with pytest.raises(ConfigError, match="above num_shards 2"):
        pool.scale_to(Target(2, num_replicas=3), "a")
    assert pool.actions(1.0) == []


def test_more_replicas_are_loaded_by_the_shards_that_live() -> None:
    pool, world = running(3)
    lives = list(world.living)
    pool.scale_to(Target(3, num_replicas=2), "a")
    world.settle()
    assert world.living == lives
    assert pool.placement is not None
    assert (pool.placement.copies_LEC[:, :, 1] >= 0).all()


def test_a_restarted_pool_finds_living_shards_and_serves_on_under_the_next_epoch() -> None:
    _, world = running(3, num_replicas=2)
    pool = membership(3, num_replicas=2)
    pool.adopt([replace(world.report(key), epoch=7) for key in world.living])
    actions = pool.actions(0.0)
    assert spawned(actions) == []
    assert orders(actions) == []
    (placement,) = published(actions)
    assert placement.version.epoch == 8
    assert placement.covered


def test_the_scale_found_on_shards_outlives_an_unchanged_configuration() -> None:
    _, world = running(2)
    world.pool.scale_to(Target(3), "a")
    world.settle()
    pool = membership(2)
    pool.adopt([world.report(key) for key in world.living])
    pool.rescale(Target(2))
    actions = pool.actions(0.0)
    assert (spawned(actions), orders(actions)) == ([], [])
    pool.rescale(Target(4))
    assert [key.index for key in spawned(pool.actions(0.0))] == [3]


@pytest.mark.parametrize("first_told", [0, 2])
def test_of_the_scales_that_shards_were_told_the_latest_counts(first_told: int) -> None:
    _, world = running(2)
    before = [world.report(key) for key in world.living]
    world.pool.scale_to(Target(3), "a")
    (added,) = spawned(world.tick())
    # The pool died when it had told this one alone.
    told = report(added, scale=world.pool.scale)
    reports = [told, *before] if first_told == 0 else [*before, told]
    successor = membership(2)
    successor.adopt(reports)
    successor.rescale(Target(2))
    assert successor.scale.target == Target(3)
    assert killed(successor.actions(0.0)) == []
    assert successor.epoch == world.pool.epoch + 1


def test_of_two_lives_of_one_seat_the_older_is_ended() -> None:
    old, new = ShardKey(0, 1), ShardKey(0, 2)
    holds_LE = np.ones((NUM_LAYERS, NUM_EXPERTS), np.bool_)
    pool = membership(1)
    scale = Scale.of(Target(1))
    pool.adopt([report(old, holds_LE, scale=scale), report(new, holds_LE, scale=scale)])
    actions = pool.actions(0.0)
    assert killed(actions) == [old]
    (placement,) = published(actions)
    assert placement.shards[0].incarnation == 2


def test_a_shard_that_starts_while_its_pool_is_new_is_waited_for_not_doubled() -> None:
    first, second = spawns(membership(2).actions(0.0))
    pool = membership(2)
    pool.adopt([report(first.key, first.holds_LE)], starting=[second.key])
    assert spawned(pool.actions(0.0)) == []
    pool.reported(report(second.key, second.holds_LE))
    assert pool.covered
    assert orders(pool.actions(0.0)) == []


def test_an_epoch_that_only_a_rank_remembers_is_outbid() -> None:
    pool, _ = running()
    pool.outbid(9)
    (placement,) = published(pool.actions(1.0))
    assert placement.version.epoch == 10


def test_progress_says_which_shard_and_how_much() -> None:
    pool = membership(2)
    first, second = spawns(pool.actions(0.0))
    pool.reported(report(first.key, first.holds_LE))
    pool.reported(report(second.key, loaded=22))
    assert pool.progress() == "STARTING: shard 2 of 2, 61 % of 0.0 GB"


def test_an_actor_name_comes_back_as_its_key() -> None:
    key = ShardKey(index=3, incarnation=12)
    assert ShardKey.from_actor_name(key.actor_name("trinity"), "trinity") == key
    assert ShardKey.from_actor_name(key.actor_name("other"), "trinity") is None


def test_copies_are_parted_once_it_is_known_which_shards_share_a_node() -> None:
    pool = membership(4, num_replicas=2)
    for spawn in spawns(pool.actions(0.0)):
        node = f"node-{spawn.key.index // 2}"
        pool.reported(replace(report(spawn.key, spawn.holds_LE), node=node))
    assert len(orders(pool.actions(0.0))) > 0
    nodes_LER = pool.holdings.plan_LER // 2
    assert (nodes_LER[:, :, 0] != nodes_LER[:, :, 1]).all()


def test_hot_experts_change_places_one_by_one_and_stay_covered() -> None:
    pool, world = running(2)
    load_LE = np.ones((NUM_LAYERS, NUM_EXPERTS))
    load_LE[:, :2] = 20.0
    world.peaks.clear()
    moves = pool.rebalance(load_LE, max_moves=8)
    assert moves == 2 * NUM_LAYERS
    assert pool.rebalance(load_LE, max_moves=8) == 0  # still on its way
    world.settle()
    assert pool.placement is not None
    primary_LE = pool.placement.primary_LE
    assert (primary_LE[:, 0] != primary_LE[:, 1]).all()
    assert all(world.peaks[key] <= NUM_LAYERS * NUM_EXPERTS // 2 + 1 for key in world.living)


def test_who_set_the_number_of_ranks_is_left_with_the_shards_for_the_next_pool() -> None:
    pool, world = running(2)
    pool.set_ranks_by_hand(True)
    assert len(published(world.tick())) == 1  # shards are told the scale with each placement
    pool.scale_to(Target(3), "a")
    world.settle()
    successor = membership(2)
    successor.adopt([world.report(key) for key in world.living])
    assert successor.scale.ranks_by_hand
    successor.set_ranks_by_hand(False)
    assert successor.scale.target == Target(3)
