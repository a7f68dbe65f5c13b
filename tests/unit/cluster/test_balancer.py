"""When load moves experts: on evidence, in its time, within its bytes; never what is covered."""

from __future__ import annotations

import numpy as np

from cluster.balancer import MIN_ROWS_PER_SEAT, BalancePolicy, Balancer
from cluster.load_stats import LoadLE
from cluster.membership import Membership
from cluster.pool_messages import Scale, Target
from cluster.spares import num_spares
from tests.support.pool import EXPERT_BYTES, NUM_EXPERTS, NUM_LAYERS, World

SHAPE = (NUM_LAYERS, NUM_EXPERTS)
PLENTY = BalancePolicy(period_s=10.0, bytes_per_s=1e6)


def running(target: Target) -> World:
    world = World(Membership(*SHAPE, Scale.of(target)))
    world.settle()
    return world


def skewed(rows: float = 1000.0) -> LoadLE:
    """Two experts of one shard have most of the rows."""
    load_LE = np.full(SHAPE, rows / 20)
    load_LE[:, :2] = rows
    return load_LE


def busiest(world: World, load_LE: LoadLE) -> float:
    assert world.pool.placement is not None
    primary_LE, num_seats = world.pool.placement.primary_LE, world.pool.scale.target.num_shards
    return max(
        float(np.bincount(primary_E, weights=load_E, minlength=num_seats).max() / load_E.mean())
        for primary_E, load_E in zip(primary_LE, load_LE, strict=True)
    )


def test_a_skewed_load_moves_experts_and_the_busiest_shard_has_less() -> None:
    world, balancer = running(Target(2)), Balancer(SHAPE, PLENTY)
    before = busiest(world, skewed())
    balancer.reported(skewed(), world.now_s)
    assert balancer.turn(world.pool, world.now_s) > 0
    world.settle()
    assert busiest(world, skewed()) < before
    assert world.pool.covered


def test_nothing_moves_before_the_period_is_over() -> None:
    world, balancer = running(Target(2)), Balancer(SHAPE, PLENTY)
    assert balancer.turn(world.pool, world.now_s) == 0
    balancer.reported(skewed(), world.now_s)
    assert balancer.turn(world.pool, world.now_s + 9.0) == 0
    assert balancer.turn(world.pool, world.now_s + 10.0) > 0


def test_a_few_rows_are_no_evidence() -> None:
    world, balancer = running(Target(2)), Balancer(SHAPE, PLENTY)
    few_LE = skewed()
    balancer.reported(few_LE * MIN_ROWS_PER_SEAT / few_LE.sum(), world.now_s)
    assert balancer.turn(world.pool, world.now_s) == 0


def test_moves_are_paid_from_the_rate() -> None:
    policy = BalancePolicy(period_s=10.0, bytes_per_s=2 * EXPERT_BYTES / 60.0)
    world, balancer = running(Target(2)), Balancer(SHAPE, policy)
    for now_s, num_moves in ((100.0, 2), (110.0, 0), (180.0, 2)):
        balancer.reported(skewed(), now_s)
        assert balancer.turn(world.pool, now_s) == num_moves
        world.settle()


def test_a_rate_of_nothing_moves_nothing() -> None:
    world = running(Target(2))
    balancer = Balancer(SHAPE, BalancePolicy(bytes_per_s=0.0))
    balancer.reported(skewed(), world.now_s)
    assert balancer.turn(world.pool, world.now_s) == 0


def test_a_budget_of_bytes_buys_the_busiest_experts_a_second_copy_under_load() -> None:
    target = Target(2, replica_bytes=4 * EXPERT_BYTES + 3)
    world, balancer = running(target), Balancer(SHAPE, PLENTY)
    balancer.reported(skewed(), world.now_s)
    while balancer.turn(world.pool, world.now_s):
        world.settle()
        world.now_s += 10.0
        balancer.reported(skewed(), world.now_s)
    placement = world.pool.placement
    assert placement is not None
    assert num_spares(placement.copies_LEC, 1) == 4
    assert (placement.copies_LEC[:, :2, 1] >= 0).all()
    for victim in world.living:
        world.die(victim)
        world.tick()
        assert world.pool.placement is not None
        assert (world.pool.placement.primary_LE[:, :2] >= 0).all()
        world.settle()


def test_a_budget_that_is_taken_back_is_freed() -> None:
    world, balancer = running(Target(2, replica_bytes=4 * EXPERT_BYTES)), Balancer(SHAPE, PLENTY)
    balancer.reported(skewed(), world.now_s)
    balancer.turn(world.pool, world.now_s)
    world.settle()
    world.pool.scale_to(Target(2), "less")
    world.settle()
    assert sum(int(world.holds(key).sum()) for key in world.living) == NUM_LAYERS * NUM_EXPERTS


def test_the_number_of_ranks_goes_out_with_the_next_placement() -> None:
    world = running(Target(2))
    assert world.pool.placement is not None
    version = world.pool.placement.version
    world.pool.ranks_are(3)
    world.tick()
    assert world.pool.placement.num_ranks == 3
    assert world.pool.placement.version > version
    world.pool.ranks_are(3)
    assert world.tick() == []
