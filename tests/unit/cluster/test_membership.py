"""The pool's view of its shards, without Ray and with time passed in."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.membership import (
    DRAIN_S,
    Action,
    Kill,
    Membership,
    Publish,
    Scale,
    ShardKey,
    ShardReport,
    Spawn,
)
from cluster.placement import Placement


def membership(num_shards: int = 2) -> Membership:
    return Membership(num_moe_layers=2, num_experts=8, scale=Scale(num_shards, num_shards))


def report(
    key: ShardKey, ready: bool = True, epoch: int = 1, scale: Scale | None = None, loaded: int = 100
) -> ShardReport:
    scale = scale or Scale(key.count, key.count)
    return ShardReport(key, ready, loaded, 100, f"unix:/{key.incarnation}", "node", epoch, scale)


def spawned(actions: list[Action]) -> list[ShardKey]:
    return [action.key for action in actions if isinstance(action, Spawn)]


def published(actions: list[Action]) -> list[Placement]:
    return [action.placement for action in actions if isinstance(action, Publish)]


def killed(actions: list[Action]) -> list[ShardKey]:
    return [action.key for action in actions if isinstance(action, Kill)]


def running(num_shards: int = 2) -> tuple[Membership, list[ShardKey]]:
    """A pool whose shards are all ready and published."""
    pool = membership(num_shards)
    keys = spawned(pool.actions(0.0))
    for key in keys:
        pool.reported(report(key))
    pool.actions(0.0)
    return pool, keys


def test_a_first_start_spawns_every_slice_once() -> None:
    pool = membership(3)
    assert [(key.index, key.count) for key in spawned(pool.actions(0.0))] == [
        (0, 3),
        (1, 3),
        (2, 3),
    ]
    assert pool.actions(0.0) == []


def test_nothing_is_published_before_a_shard_is_ready_and_coverage_is_told_truly() -> None:
    pool = membership(2)
    first, second = spawned(pool.actions(0.0))
    pool.reported(report(first, ready=False))
    assert published(pool.actions(0.0)) == []
    pool.reported(report(first))
    (partial,) = published(pool.actions(0.0))
    assert (partial.covered, pool.covered) == (False, False)
    pool.reported(report(second))
    (whole,) = published(pool.actions(0.0))
    assert (whole.covered, pool.covered) == (True, True)
    assert whole.version > partial.version


def test_a_dead_shard_is_unplaced_at_once_and_tried_again_under_a_new_incarnation() -> None:
    pool, (first, second) = running()
    pool.died(second, now_s=1.0)
    actions = pool.actions(1.0)
    (key,) = spawned(actions)
    assert (key.index, key.count) == (second.index, second.count)
    assert key.incarnation > max(first.incarnation, second.incarnation)
    (placement,) = published(actions)
    assert [shard.incarnation for shard in placement.shards] == [first.incarnation]


def test_a_late_report_of_a_dead_incarnation_changes_nothing() -> None:
    pool, (_, second) = running()
    pool.died(second, now_s=1.0)
    pool.actions(1.0)
    pool.reported(report(second))
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


def test_scaling_keeps_the_old_shards_serving_until_the_new_ones_are_whole() -> None:
    pool, old = running(2)
    pool.rescale(3)
    new = spawned(pool.actions(1.0))
    assert {key.count for key in new} == {3}
    for key in new[:-1]:
        pool.reported(report(key))
    assert published(pool.actions(1.0)) == []
    pool.reported(report(new[-1]))
    actions = pool.actions(2.0)
    (placement,) = published(actions)
    assert placement.covered
    assert {shard.incarnation for shard in placement.shards} == {key.incarnation for key in new}
    assert killed(actions) == []
    assert sorted(killed(pool.actions(2.0 + DRAIN_S))) == old
    for key in old:
        pool.died(key, 8.0)
    assert pool.settled


def test_a_restarted_pool_finds_living_shards_and_serves_on_under_the_next_epoch() -> None:
    _, keys = running(2)
    pool = membership(2)
    pool.adopt([report(key, epoch=7) for key in keys])
    actions = pool.actions(0.0)
    assert spawned(actions) == []
    (placement,) = published(actions)
    assert placement.version.epoch == 8
    assert placement.covered


def test_the_scale_found_on_shards_outlives_an_unchanged_configuration() -> None:
    found = Scale(num_shards=3, configured=2)
    keys = [ShardKey(3, index, index + 1) for index in range(3)]
    pool = membership(2)
    pool.adopt([report(key, scale=found) for key in keys])
    pool.rescale(2)
    assert spawned(pool.actions(0.0)) == []
    pool.rescale(4)
    assert {key.count for key in spawned(pool.actions(0.0))} == {4}


def test_of_two_lives_of_one_slice_the_older_is_ended() -> None:
    old, new = ShardKey(1, 0, 1), ShardKey(1, 0, 2)
    pool = membership(1)
    pool.adopt([report(old), report(new)])
    actions = pool.actions(0.0)
    assert killed(actions) == [old]
    (placement,) = published(actions)
    assert placement.shards[0].incarnation == 2


def test_a_shard_that_starts_while_its_pool_is_new_is_waited_for_not_doubled() -> None:
    pool = membership(2)
    keys = [ShardKey(2, index, index + 1) for index in range(2)]
    pool.adopt([report(keys[0])], starting=keys[1:])
    assert spawned(pool.actions(0.0)) == []
    pool.reported(report(keys[1]))
    assert pool.covered


def test_an_epoch_that_only_a_rank_remembers_is_outbid() -> None:
    pool, _ = running()
    pool.outbid(9)
    (placement,) = published(pool.actions(1.0))
    assert placement.version.epoch == 10


def test_progress_says_which_shard_and_how_much() -> None:
    pool = membership(2)
    first, second = spawned(pool.actions(0.0))
    pool.reported(report(first))
    pool.reported(report(second, ready=False, loaded=22))
    assert pool.progress() == "STARTING: shard 2 of 2, 61 % of 0.0 GB"


def test_an_actor_name_comes_back_as_its_key() -> None:
    key = ShardKey(count=8, index=3, incarnation=12)
    assert ShardKey.from_actor_name(key.actor_name("trinity"), "trinity") == key
    assert ShardKey.from_actor_name(key.actor_name("other"), "trinity") is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["ready", "die", "scale"]), st.integers(0, 7))))
def test_versions_only_grow_and_coverage_is_never_claimed_falsely(
    events: list[tuple[str, int]],
) -> None:
    pool = membership(2)
    alive: set[ShardKey] = set()
    ready: set[int] = set()
    last = None
    for step, (what, choice) in enumerate(events):
        if what == "scale":
            pool.rescale(choice % 4 + 1)
        elif alive:
            key = sorted(alive)[choice % len(alive)]
            if what == "ready":
                ready.add(key.incarnation)
                pool.reported(report(key))
            else:
                alive.discard(key)
                ready.discard(key.incarnation)
                pool.died(key, float(step))
        actions = pool.actions(float(step))
        alive |= set(spawned(actions))
        for key in killed(actions):
            alive.discard(key)
            ready.discard(key.incarnation)
            pool.died(key, float(step))
        for placement in published(actions):
            assert last is None or placement.version > last
            last = placement.version
            used = {shard.incarnation for shard in placement.shards}
            assert used <= ready
            assert placement.covered == pool.covered
