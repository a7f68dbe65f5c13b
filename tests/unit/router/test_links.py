"""Links to shards: kept, watched, lost, made again; and which copy of an expert is asked."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

import numpy as np
import pytest

from cluster.errors import LinkLostError, TrinityError, WireError
from cluster.wire import Busy, Frame, Ping, Refused
from router.config import DispatchConfig
from router.copies import ShardKey, key_of
from router.links import ShardLinks
from tests.fakes.shard_world import FakeRank, JumpingPoller, World, placement_of

P = ParamSpec("P")
T = TypeVar("T")
ONE_EACH = [[0], [1]]


def run(
    links: ShardLinks, world: World, for_s: float
) -> list[tuple[ShardKey, Frame | TrinityError]]:
    """Wait for a while; return what came."""
    end_s = world.now_s + for_s
    items = []
    while world.now_s < end_s:
        items += links.wait(min(0.1, end_s - world.now_s))
    return items


def losses(items: list[tuple[ShardKey, Frame | TrinityError]]) -> list[ShardKey]:
    return [key for key, item in items if isinstance(item, TrinityError)]


def test_a_newer_placement_keeps_links_it_names_and_closes_the_rest(rank: FakeRank) -> None:
    first, second, third = (rank.world.add(index) for index in range(3))
    rank.links.apply(placement_of([first, second], ONE_EACH))
    kept = first.links[0]
    rank.links.apply(placement_of([third, first], ONE_EACH, counter=2))
    assert losses(rank.links.wait(0.0)) == [key_of(second.info)]
    assert (len(first.links), kept.closed, second.links[0].closed) == (1, False, True)
    assert rank.links.owners(0).tolist() == [0, 1]


@pytest.mark.parametrize("counter", [1, 2])
def test_a_placement_that_is_not_newer_is_ignored(rank: FakeRank, counter: int) -> None:
    first, second = rank.world.add(0), rank.world.add(1)
    newest = placement_of([first, second], ONE_EACH, counter=2)
    rank.links.apply(newest)
    rank.links.apply(placement_of([first], [[0], [0]], counter=counter))
    assert rank.links.placement is newest
    assert not second.links[0].closed


def test_the_first_living_copy_owns_an_expert(rank: FakeRank) -> None:
    first, second = rank.world.add(0), rank.world.add(1)
    rank.links.apply(placement_of([first, second], [[0, 1], [1, 0], [0], []]))
    assert rank.links.owners(0).tolist() == [0, 1, 0, -1]
    first.die()
    rank.links.wait(0.1)
    assert rank.links.owners(0).tolist() == [1, 1, -1, -1]
    assert not rank.links.covered()
    first.reachable = True
    run(rank.links, rank.world, 1.0)
    assert rank.links.owners(1).tolist() == [0, 1, 0, -1]


def test_a_shard_that_left_and_came_back_as_another_life_is_connected_anew(rank: FakeRank) -> None:
    first = rank.world.add(0)
    rank.links.apply(placement_of([first], [[0]]))
    first.die()
    again = rank.world.add(0, incarnation=2)
    rank.links.apply(placement_of([again], [[0]], counter=2))
    assert rank.links.alive((0, 2))
    assert not rank.links.alive((0, 1))


def test_whoever_answers_at_an_address_must_be_the_shard_of_the_placement(rank: FakeRank) -> None:
    expected = rank.world.add(0, incarnation=1)
    usurper = rank.world.add(0, incarnation=2)
    rank.links.apply(placement_of([expected], [[0]]))
    assert not rank.links.alive((0, 1))
    assert usurper.links[0].closed
    assert "fake:0 is shard 0, life 2 now" in rank.links.missing()[0]


def test_a_lost_link_is_told_once_and_tried_again_at_its_pace(rank: FakeRank) -> None:
    first = rank.world.add(0)
    rank.links.apply(placement_of([first], [[0]]))
    first.die()
    assert losses(run(rank.links, rank.world, 2.0)) == [(0, 1)]
    assert rank.lost == [0]
    assert rank.links.missing() == ["shard 0 at fake:0: Lost shard 0: nobody is there."]
    first.reachable = True
    back_by_s = rank.world.now_s + 2 * rank.config.reconnect_every_s
    run(rank.links, rank.world, back_by_s - rank.world.now_s)
    assert rank.links.missing() == []
    assert len(first.links) == 2


def test_sending_to_a_shard_without_a_link_is_a_loss_at_the_next_wait(rank: FakeRank) -> None:
    first = rank.world.add(0)
    first.die()
    rank.links.apply(placement_of([first], [[0]]))
    assert rank.links.send(0, Ping(1)) == (0, 1)
    [(key, error)] = rank.links.wait(0.0)
    assert key == (0, 1)
    assert isinstance(error, LinkLostError)
    assert "nobody is there" in str(error)


def test_a_link_that_breaks_while_sending_is_a_loss_at_the_next_wait(rank: FakeRank) -> None:
    first = rank.world.add(0)
    rank.links.apply(placement_of([first], [[0]]))
    first.reachable = False
    rank.links.send(0, Ping(1))
    assert losses(rank.links.wait(0.0)) == [(0, 1)]
    assert first.links[0].closed


@pytest.mark.parametrize("item", [WireError("damaged"), Refused("checksum_mismatch", "damaged")])
def test_a_frame_that_either_end_cannot_read_costs_the_link(
    rank: FakeRank, item: Frame | TrinityError
) -> None:
    first = rank.world.add(0)
    rank.links.apply(placement_of([first], [[0]]))
    first.say(first.links[0], item, after_s=0.0)
    [(key, error)] = run(rank.links, rank.world, 0.1)
    assert key == (0, 1)
    assert "damaged" in str(error)
    assert first.links[0].closed


def test_pings_and_their_answers_stay_below(rank: FakeRank) -> None:
    first = rank.world.add(0)
    rank.links.apply(placement_of([first], [[0]]))
    assert run(rank.links, rank.world, 10.0) == []
    assert rank.links.alive((0, 1))


def test_a_silent_shard_is_lost_in_time_and_one_that_said_it_is_busy_is_not(
    rank: FakeRank,
) -> None:
    silent, busy = rank.world.add(0), rank.world.add(1)
    rank.links.apply(placement_of([silent, busy], ONE_EACH))
    busy.say(busy.links[0], Busy(for_us=5_000_000), after_s=0.0)
    silent.silent = busy.silent = True
    items = run(rank.links, rank.world, rank.config.dead_after_s + 0.3)
    assert losses(items) == [(0, 1)]
    assert losses(run(rank.links, rank.world, 6.0)) == [(1, 1)]


class HeldExecutor(Executor):
    """Runs work when the test says so."""

    def __init__(self) -> None:
        self.held: list[Callable[[], None]] = []

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        self.held.append(lambda: future.set_result(fn(*args, **kwargs)))
        return future


@pytest.fixture
def executor() -> HeldExecutor:
    return HeldExecutor()


@pytest.fixture
def slow_links(world: World, executor: HeldExecutor) -> ShardLinks:
    """Links whose connections take as long as the test likes."""
    config = DispatchConfig()
    poller = JumpingPoller(world)
    return ShardLinks(world.connect, executor, config, clock=world.clock, poller=poller)


def test_a_connection_that_is_made_slowly_keeps_nobody_waiting(
    world: World, executor: HeldExecutor, slow_links: ShardLinks
) -> None:
    slow_links.apply(placement_of([world.add(0)], [[0]]))
    run(slow_links, world, 1.0)
    assert slow_links.missing() == ["shard 0 at fake:0: not connected yet"]
    [connect] = executor.held
    connect()
    slow_links.wait(0.0)
    assert slow_links.missing() == []
    slow_links.close()


def test_a_connection_that_is_made_after_the_shard_left_or_the_end_is_closed(
    world: World, executor: HeldExecutor, slow_links: ShardLinks
) -> None:
    first, second = world.add(0), world.add(1)
    slow_links.apply(placement_of([first], [[0]]))
    slow_links.apply(placement_of([second], [[0]], counter=2))
    slow_links.close()
    for connect, shard in zip(executor.held, (first, second), strict=True):
        connect()
        assert shard.links[0].closed


def test_closing_closes_every_link_and_a_late_wake_harms_nobody(rank: FakeRank) -> None:
    first = rank.world.add(0)
    rank.links.apply(placement_of([first], [[0]]))
    rank.links.close()
    assert first.links[0].closed
    rank.links.wake()


def test_owners_are_those_of_their_layer(rank: FakeRank) -> None:
    first, second = rank.world.add(0), rank.world.add(1)
    placement = placement_of([first, second], ONE_EACH)
    copies_LEC = placement.copies_LEC.copy()
    copies_LEC[1] = copies_LEC[1][::-1]
    rank.links.apply(type(placement)(placement.version, placement.shards, copies_LEC))
    assert np.array_equal(rank.links.owners(0), [0, 1])
    assert np.array_equal(rank.links.owners(1), [1, 0])
