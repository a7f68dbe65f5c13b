"""A request whose rows crash shards, or are never finite, fails alone, and only if proven."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from cluster.errors import CoverageLostError, PoisonedRequestError
from cluster.metrics import Metric
from cluster.wire import ExpertCall
from router.handle import Handle
from router.isolation import RowRequests
from tests.fakes.shard_world import (
    FakeLink,
    FakeRank,
    FakeShard,
    placement_of,
    rows_by_slot,
    wanted_rows,
)
from tests.support.dispatching import (
    ALTERNATING,
    HIDDEN,
    REPLICATED,
    TOPK_IDS,
    assert_rows_are_right,
    nothing_is_open,
    two_shards,
)

REQUESTS = RowRequests(np.array([0, 1, 3, 4], np.int32))
POISON_TOKEN = 1
POISONED_REQUEST = 1
RESTART_S = 0.3


def is_poison(call: ExpertCall) -> bool:
    return bool((call.hidden_TD[:, 0] == HIDDEN[POISON_TOKEN, 0]).any())


class Pool:
    """Restarts what dies, each time as another life."""

    def __init__(self, rank: FakeRank, shards: list[FakeShard], copies: list[list[int]]) -> None:
        self.rank, self.shards, self.copies = rank, shards, copies
        self.num_deaths = 0
        for shard in shards:
            shard.answer_always = self.answer

    def answer(self, link: FakeLink, call: ExpertCall) -> None:
        if is_poison(call):
            self.kill(link.shard)
        else:
            link.shard.reply(link, call)

    def kill(self, shard: FakeShard) -> None:
        self.num_deaths += 1
        shard.die()
        self.rank.world.later(RESTART_S, lambda: self.restart(shard))

    def restart(self, shard: FakeShard) -> None:
        again = self.rank.world.add(shard.shard_id, shard.incarnation + 1)
        again.answer_always = self.answer
        self.shards[shard.shard_id] = again
        counter = next(self.rank.world.counters)
        self.rank.dispatcher.publish(placement_of(self.shards, self.copies, counter))


def dispatched(rank: FakeRank) -> Handle:
    return rank.dispatcher.dispatch(0, HIDDEN, TOPK_IDS, 0, REQUESTS)


@pytest.mark.parametrize("copies", [ALTERNATING, REPLICATED], ids=["single", "replicated"])
def test_the_request_whose_rows_crash_shards_is_named_and_the_others_go_on(
    rank: FakeRank, copies: list[list[int]]
) -> None:
    pool = Pool(rank, list(two_shards(rank, copies)), copies)
    handle = dispatched(rank)
    with pytest.raises(PoisonedRequestError) as caught:
        rank.dispatcher.collect(handle)
    assert caught.value.requests == (POISONED_REQUEST,)
    assert nothing_is_open(rank)
    assert pool.num_deaths >= 4
    rank.dispatcher.wait(1.0)
    rank.dispatcher.begin_step()
    rest = np.array([0, 3])
    rows = rank.layer(HIDDEN[rest], TOPK_IDS[rest])
    assert torch.equal(rows, wanted_rows(HIDDEN[rest], TOPK_IDS[rest], 0))


def kill_first(pool: Pool, times: int) -> Callable[[FakeLink, ExpertCall], None]:
    """Kill from outside while calls are away, so often; then answer."""

    def answer(link: FakeLink, call: ExpertCall) -> None:
        if pool.num_deaths < times:
            pool.kill(link.shard)
        else:
            link.shard.reply(link, call)

    return answer


@pytest.mark.parametrize("times", [2, 3, 4])
def test_kills_that_hit_one_frame_after_the_other_fail_nobody(rank: FakeRank, times: int) -> None:
    pool = Pool(rank, list(two_shards(rank, ALTERNATING)), ALTERNATING)
    pool.answer = kill_first(pool, times)  # type: ignore[method-assign, assignment]
    for shard in pool.shards:
        shard.answer_always = pool.answer
    rows = rows_by_slot(*rank.dispatcher.collect(dispatched(rank)))
    assert torch.equal(rows, wanted_rows(HIDDEN, TOPK_IDS, 0))
    assert rank.metrics[Metric.ISOLATED_CALLS] > 0
    assert nothing_is_open(rank)


def test_experts_that_are_gone_beyond_the_grace_are_told_also_when_their_rows_travel_alone(
    rank: FakeRank,
) -> None:
    for shard in two_shards(rank, REPLICATED):
        shard.answer_always = shard.die_at_call
    handle = dispatched(rank)
    with pytest.raises(CoverageLostError) as caught:
        rank.dispatcher.collect(handle)
    assert caught.value.num_experts == len(np.unique(TOPK_IDS))
    assert nothing_is_open(rank)


def test_links_that_break_again_and_again_are_no_crashes(rank: FakeRank) -> None:
    first, _ = two_shards(rank, ALTERNATING)
    first.answers.extend([first.blip] * 8)
    rows = rows_by_slot(*rank.dispatcher.collect(dispatched(rank)))
    assert torch.equal(rows, wanted_rows(HIDDEN, TOPK_IDS, 0))
    assert rank.metrics[Metric.ISOLATED_CALLS] > 0


def test_isolated_rows_travel_one_request_and_one_frame_at_a_time(rank: FakeRank) -> None:
    first, second = two_shards(rank, ALTERNATING)
    first.answers.extend([first.blip, first.blip])
    away: list[int] = []
    most: list[int] = []

    def count(link: FakeLink, call: ExpertCall) -> None:
        if call.call_id.attempt > 1:
            away.append(1)
            most.append(len(away))
            rank.world.later(0.0005, away.clear)
        link.shard.reply(link, call)

    first.answer_always = second.answer_always = count
    rows = rows_by_slot(*rank.dispatcher.collect(dispatched(rank)))
    assert torch.equal(rows, wanted_rows(HIDDEN, TOPK_IDS, 0))
    assert set(most) == {1}
    # The three requests all have rows for the first shard.
    assert rank.metrics[Metric.ISOLATED_CALLS] == 3
    request_starts = {tuple(call.hidden_TD[:, 0].tolist()) for call in first.calls[-3:]}
    assert len(request_starts) == 3


def poison_nan(link: FakeLink, call: ExpertCall) -> None:
    reply = link.shard.good_reply(call)
    bad_N = torch.isin(
        torch.from_numpy(call.token_idx_N).long(),
        torch.nonzero(call.hidden_TD[:, 0] == HIDDEN[POISON_TOKEN, 0]).flatten(),
    )
    reply.rows_ND[bad_N] = float("nan")
    link.shard.say(link, reply)


@pytest.mark.parametrize("copies", [ALTERNATING, REPLICATED], ids=["single", "replicated"])
def test_only_the_request_whose_rows_are_never_finite_is_named(
    rank: FakeRank, copies: list[list[int]]
) -> None:
    first, second = two_shards(rank, copies)
    first.answer_always = second.answer_always = poison_nan
    handle = dispatched(rank)
    rank.dispatcher.collect(handle)
    rank.dispatcher.ask_again(handle)
    rank.dispatcher.collect(handle)
    with pytest.raises(PoisonedRequestError) as caught:
        rank.dispatcher.ask_again(handle)
    assert caught.value.requests == (POISONED_REQUEST,)
    assert nothing_is_open(rank)


def test_rows_that_one_copy_spoils_for_ever_come_from_the_other(rank: FakeRank) -> None:
    first, _ = two_shards(rank, REPLICATED)
    first.answer_always = poison_nan
    handle = dispatched(rank)
    rank.dispatcher.collect(handle)
    rank.dispatcher.ask_again(handle)
    rows_ND, row_of_slot_TK = rank.dispatcher.collect(handle)
    tokens = wanted_rows(HIDDEN, TOPK_IDS, 0)
    got = rows_by_slot(rows_ND, row_of_slot_TK)
    assert torch.equal(got, tokens)


def test_a_shard_that_lacks_an_expert_keeps_its_link_and_another_copy_answers(
    rank: FakeRank,
) -> None:
    first, second = two_shards(rank, REPLICATED)
    first.answers.append(first.error("expert_not_held"))
    assert_rows_are_right(rank)
    assert not first.links[0].closed
    assert rank.metrics[Metric.SHARDS_LOST] == 0
    # The pool is told all the same.
    assert rank.lost == [0]
    assert [call.call_id.attempt for call in second.calls] == [0, 1]


def test_a_newer_placement_ends_the_wait_for_an_expert_that_its_shard_lacks(
    rank: FakeRank,
) -> None:
    first, second = two_shards(rank, ALTERNATING)
    first.answer_always = first.error("expert_not_held")
    newer = placement_of([second], [[0]] * len(ALTERNATING), counter=2)
    rank.world.later(0.1, lambda: rank.dispatcher.publish(newer))
    assert_rows_are_right(rank)
    assert len(first.calls) == 1


def test_the_only_copy_is_asked_again_over_the_same_link(rank: FakeRank) -> None:
    first, _ = two_shards(rank, ALTERNATING)
    first.answers.append(first.error("expert_not_held"))
    assert_rows_are_right(rank)
    assert len(first.links) == 1
    assert len(first.calls) == 2
