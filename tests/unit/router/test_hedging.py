"""A late shard is overtaken by another copy: rows come once, budgets hold, nobody is charged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.metrics import Metric
from cluster.wire import ExpertCall
from router.config import DispatchConfig
from router.hedging import BURST
from router.isolation import RowRequests
from router.pace import LEAST_CALLS
from tests.fakes.shard_world import (
    Answer,
    FakeLink,
    FakeRank,
    FakeShard,
    World,
    placement_of,
    rows_by_slot,
    wanted_rows,
)
from tests.support.dispatching import (
    ALTERNATING,
    HIDDEN,
    NUM_EXPERTS,
    REPLICATED,
    TOPK_IDS,
    assert_rows_are_right,
    nothing_is_open,
    two_shards,
)

FLOOR_S = DispatchConfig().hedge_floor_s
ALL_ON_FIRST = [[0, 1 + expert % 2] for expert in range(NUM_EXPERTS)]
"""Copies of what the first of three shards holds, in turn on the other two."""


def warm_up(rank: FakeRank) -> None:
    """Let every shard's pace be known."""
    for call in range(LEAST_CALLS):
        assert_rows_are_right(rank, call % 2)


def warm_shards(rank: FakeRank, copies: list[list[int]] = REPLICATED) -> list[FakeShard]:
    shards = list(two_shards(rank, copies))
    warm_up(rank)
    return shards


def three_shards(rank: FakeRank, copies: list[list[int]]) -> list[FakeShard]:
    shards = [rank.world.add(index) for index in range(3)]
    rank.dispatcher.publish(placement_of(shards, copies))
    rank.dispatcher.begin_step()
    warm_up(rank)
    return shards


def layer_took_s(rank: FakeRank) -> float:
    start_s = rank.world.now_s
    assert_rows_are_right(rank)
    return rank.world.now_s - start_s


def idle(rank: FakeRank, for_s: float) -> None:
    end_s = rank.world.now_s + for_s
    while rank.world.now_s < end_s:
        rank.dispatcher.wait(0.05)


def counted(rank: FakeRank) -> tuple[int, int, int]:
    metrics = rank.metrics
    return tuple(  # type: ignore[return-value]
        metrics[each] for each in (Metric.HEDGED_CALLS, Metric.HEDGES_WON, Metric.HEDGES_REFUSED)
    )


def nobody_is_charged(rank: FakeRank) -> bool:
    lost = rank.metrics[Metric.SHARDS_LOST] + rank.metrics[Metric.DISPATCH_RETRIES]
    return lost == 0 and rank.lost == []


def test_a_late_call_is_overtaken_by_another_copy_soon_after_its_deadline(rank: FakeRank) -> None:
    first, second = warm_shards(rank)
    first.answers.append(first.late(1.0))
    assert FLOOR_S < layer_took_s(rank) < FLOOR_S + 0.01
    assert counted(rank) == (1, 1, 0)
    assert [call.call_id.attempt for call in second.calls[-2:]] == [0, 1]
    assert nobody_is_charged(rank)
    assert nothing_is_open(rank)


def test_the_deadline_is_three_times_what_such_calls_take(rank: FakeRank) -> None:
    first, second = two_shards(rank, REPLICATED)
    first.answers.extend([first.late(0.1)] * LEAST_CALLS + [first.late(5.0)])
    second.answers.extend([second.late(0.1)] * LEAST_CALLS)
    warm_up(rank)
    assert 0.3 < layer_took_s(rank) < 0.31
    assert counted(rank) == (1, 1, 0)


def test_a_shard_whose_pace_is_not_known_is_waited_for(rank: FakeRank) -> None:
    first, _ = two_shards(rank, REPLICATED)
    first.answers.append(first.late(1.0))
    assert layer_took_s(rank) > 0.99
    assert counted(rank) == (0, 0, 0)


def test_a_call_of_a_size_that_was_not_seen_yet_is_overtaken_too(rank: FakeRank) -> None:
    first, _ = warm_shards(rank)
    first.answers.append(first.late(1.0))
    few = np.array([[0, 1]])
    assert torch.equal(rank.layer(HIDDEN[:1], few), wanted_rows(HIDDEN[:1], few, 0))
    assert counted(rank) == (1, 1, 0)


@pytest.mark.parametrize("copies", [ALTERNATING, [*REPLICATED[:-2], [0], [1]]])
def test_rows_that_no_other_copy_could_all_bring_are_waited_for(
    rank: FakeRank, copies: list[list[int]]
) -> None:
    first, _ = warm_shards(rank, copies)
    first.answers.append(first.late(1.0))
    assert layer_took_s(rank) > 0.99
    assert counted(rank) == (0, 0, 0)


def test_without_a_share_of_the_calls_nothing_is_hedged(world: World) -> None:
    rank = FakeRank(world, DispatchConfig(hedge_share=0.0))
    first, _ = warm_shards(rank)
    first.answers.append(first.late(1.0))
    assert layer_took_s(rank) > 0.99
    assert counted(rank) == (0, 0, 0)
    rank.dispatcher.close()


def test_the_late_shard_is_asked_last_until_its_answer_has_come(rank: FakeRank) -> None:
    first, second = warm_shards(rank)
    first.answers.append(first.late(1.0))
    assert_rows_are_right(rank)
    asked = len(first.calls)
    rank.dispatcher.begin_step()
    assert layer_took_s(rank) < 0.01
    assert len(first.calls) == asked
    assert len(second.calls[-1].token_idx_N) == TOPK_IDS.size
    idle(rank, 1.0)
    assert rank.metrics[Metric.LATE_REPLIES] == 1
    assert layer_took_s(rank) < 0.01
    assert len(first.calls) == asked + 1
    assert nobody_is_charged(rank)


def test_an_answer_that_comes_before_the_hedges_is_taken_and_theirs_is_dropped(
    rank: FakeRank,
) -> None:
    first, second = warm_shards(rank)
    first.answers.append(first.late(FLOOR_S + 0.0005))
    assert_rows_are_right(rank)
    assert counted(rank) == (1, 0, 0)
    asked = len(second.calls)
    idle(rank, 0.1)
    assert rank.metrics[Metric.LATE_REPLIES] == 1
    assert_rows_are_right(rank)
    # Neither is suspect: both are asked for their own.
    assert len(second.calls) == asked + 1
    assert nobody_is_charged(rank)


def spoilt(shard: FakeShard, after_s: float, rows: slice) -> Answer:
    """Answer late, and wrongly in some rows."""

    def answer(link: FakeLink, call: ExpertCall) -> None:
        reply = shard.good_reply(call)
        rows_ND = reply.rows_ND.clone()
        rows_ND[rows] = 99
        shard.say(link, replace(reply, rows_ND=rows_ND), after_s)

    return answer


def test_rows_that_have_come_are_not_written_again(rank: FakeRank) -> None:
    first, second, third = three_shards(rank, ALL_ON_FIRST)
    few = np.array([[0, 1], [2, 1]])
    for call in range(LEAST_CALLS):
        rank.layer(HIDDEN[:2], few, call % 2)
    # Rows of expert 0 come first: the second shard has brought them by then.
    first.answers.append(spoilt(first, 0.2, slice(0, 1)))
    third.answers.append(third.late(0.5))
    rows_TKD = rank.layer(HIDDEN[:2], few)
    assert torch.equal(rows_TKD, wanted_rows(HIDDEN[:2], few, 0))
    assert (len(second.calls), len(third.calls)) == (1, 1)
    assert counted(rank) == (1, 0, 0)


def test_the_rows_of_a_late_call_may_come_from_several_others(rank: FakeRank) -> None:
    first, second, third = three_shards(rank, ALL_ON_FIRST)
    first.answers.append(spoilt(first, 1.0, slice(None)))
    assert FLOOR_S < layer_took_s(rank) < FLOOR_S + 0.01
    assert (len(second.calls), len(third.calls)) == (1, 1)
    assert counted(rank) == (1, 1, 0)


def test_two_late_shards_do_not_hedge_each_other(rank: FakeRank) -> None:
    first, second = warm_shards(rank)
    first.answers.append(first.late(0.4))
    second.answers.append(second.late(0.4))
    assert_rows_are_right(rank)
    # The first to be looked at finds the other not suspect yet; the other finds nobody.
    assert rank.metrics[Metric.HEDGED_CALLS] == 1


def test_hedges_beyond_the_budget_are_refused_and_counted_once(world: World) -> None:
    rank = FakeRank(world, DispatchConfig(hedge_share=1e-9))
    first, _ = warm_shards(rank)
    for _ in range(BURST):
        first.answers.append(first.late(0.2))
        assert layer_took_s(rank) < 0.06
        idle(rank, 20.0)
        rank.dispatcher.begin_step()
    assert counted(rank) == (BURST, BURST, 0)
    first.answers.append(first.late(0.4))
    assert layer_took_s(rank) > 0.39
    assert counted(rank) == (BURST, BURST, 1)
    rank.dispatcher.close()


def test_a_shard_that_is_always_late_is_tried_ever_less_often(rank: FakeRank) -> None:
    first, _ = warm_shards(rank)
    first.answer_always = first.late(0.2)
    start_s, steps = rank.world.now_s, 0
    while rank.world.now_s - start_s < 10.0:
        rank.dispatcher.begin_step()
        assert_rows_are_right(rank)
        steps += 1
        rank.world.now_s += 0.01
    hedged, won, refused = counted(rank)
    # Waited out, the slow shard would allow 50 steps.
    assert steps > 800
    assert (hedged, refused) == (won, 0)
    assert hedged <= 8


def test_a_copy_that_is_reached_again_while_rows_are_late_is_asked_then(rank: FakeRank) -> None:
    first, second = warm_shards(rank)
    second.die()
    rank.dispatcher.wait(0.1)
    assert_rows_are_right(rank)
    for call in range(LEAST_CALLS):
        assert_rows_are_right(rank, call % 2)
    first.answers.append(first.late(2.0))
    rank.world.later(0.3, lambda: setattr(second, "reachable", True))
    assert layer_took_s(rank) < 1.0
    assert counted(rank) == (1, 1, 0)


def test_a_hedge_that_is_lost_leaves_the_late_answer_awaited(rank: FakeRank) -> None:
    first, second = warm_shards(rank)
    first.answers.append(first.late(0.5))
    second.answers.extend([second.reply, second.die_at_call])
    assert 0.4 < layer_took_s(rank) < 0.6
    assert rank.lost == [1]
    assert rank.metrics[Metric.DISPATCH_RETRIES] == 0
    assert nothing_is_open(rank)


def test_when_a_hedge_is_lost_a_third_copy_is_asked(rank: FakeRank) -> None:
    copies = [[0, 1, 2]] * NUM_EXPERTS
    first, second, third = three_shards(rank, copies)
    first.answers.append(first.late(2.0))
    second.answers.append(second.die_at_call)
    assert layer_took_s(rank) < 0.2
    assert len(third.calls) == 1
    assert counted(rank) == (2, 1, 0)


def test_a_late_shard_that_dies_costs_nothing_while_its_rows_are_on_their_way(
    rank: FakeRank,
) -> None:
    first, second = warm_shards(rank)
    first.answers.append(first.ignore)
    second.answers.extend([second.reply, second.late(0.2)])
    rank.world.later(0.1, first.die)
    assert 0.2 < layer_took_s(rank) < 0.3
    assert rank.metrics[Metric.DISPATCH_RETRIES] == 0
    assert rank.metrics[Metric.SHARDS_LOST] == 1
    assert_rows_are_right(rank)


def test_rows_whose_two_shards_both_die_wait_for_the_first_to_be_back(rank: FakeRank) -> None:
    first, second = warm_shards(rank)
    first.answers.append(first.ignore)
    second.answers.extend([second.reply, second.die_at_call])
    rank.world.later(0.1, first.die)
    rank.world.later(1.0, lambda: setattr(second, "reachable", True))
    assert_rows_are_right(rank)
    assert rank.metrics[Metric.COVERAGE_STALLS] == 1
    assert nothing_is_open(rank)


def test_a_placement_that_drops_the_late_shard_leaves_the_hedge_to_bring_its_rows(
    rank: FakeRank,
) -> None:
    first, second = warm_shards(rank)
    first.answers.append(first.ignore)
    second.answers.extend([second.reply, second.late(0.3)])
    newer = placement_of([second], [[0]] * NUM_EXPERTS, counter=2)
    rank.world.later(0.1, lambda: rank.dispatcher.publish(newer))
    assert_rows_are_right(rank)
    assert rank.metrics[Metric.DISPATCH_RETRIES] == 0
    rank.dispatcher.begin_step()
    assert_rows_are_right(rank)


def test_a_shard_that_says_not_to_hold_what_a_hedge_asks_is_no_loss(rank: FakeRank) -> None:
    first, second = warm_shards(rank)
    first.answers.append(first.late(0.5))
    second.answers.extend([second.reply, second.error("expert_not_held")])
    # Asked again once it may hold them.
    assert rank.config.reconnect_every_s < layer_took_s(rank) < 0.4
    assert counted(rank) == (2, 1, 0)
    assert rank.metrics[Metric.DISPATCH_RETRIES] == 0
    assert rank.metrics[Metric.SHARDS_LOST] == 0


def test_an_overtaken_call_that_is_never_answered_costs_the_link_in_the_end(
    rank: FakeRank,
) -> None:
    first, _ = warm_shards(rank)
    first.answers.append(first.ignore)
    assert_rows_are_right(rank)
    idle(rank, rank.config.call_timeout_s - 0.2)
    assert nobody_is_charged(rank)
    idle(rank, 1.0)
    assert rank.lost == [0]
    assert_rows_are_right(rank)
    assert len(first.links) == 2


def test_rows_that_come_twice_and_are_not_finite_are_fetched_again(rank: FakeRank) -> None:
    first, second = warm_shards(rank)
    first.answers.append(first.late(1.0))
    second.answers.extend([second.reply, second.not_finite])
    handle = rank.dispatcher.dispatch(0, HIDDEN, TOPK_IDS)
    rows = rank.dispatcher.collect(handle)
    assert not torch.isfinite(rows[0]).all()
    rank.dispatcher.ask_again(handle)
    rows = rank.dispatcher.collect(handle)
    assert torch.equal(rows_by_slot(*rows), wanted_rows(HIDDEN, TOPK_IDS, 0))


def test_requests_travel_alone_only_when_no_overtaken_call_could_crash_their_shard(
    rank: FakeRank,
) -> None:
    first, second, third = three_shards(rank, [[0, 1, 2]] * NUM_EXPERTS)
    alone: list[float] = []

    def note(link: FakeLink, call: ExpertCall) -> None:
        alone.append(rank.world.now_s)
        link.shard.reply(link, call)

    answer_at_s = rank.world.now_s + 2.0
    first.answers.append(first.late(2.0))
    assert_rows_are_right(rank)
    second.answers.append(second.blip)
    third.answers.append(third.blip)
    for shard in (first, second, third):
        shard.answer_always = note
    requests = RowRequests(np.array([0, 1, 3, 4], np.int32))
    handle = rank.dispatcher.dispatch(1, HIDDEN, TOPK_IDS, 0, requests)
    rows = rows_by_slot(*rank.dispatcher.collect(handle))
    assert torch.equal(rows, wanted_rows(HIDDEN, TOPK_IDS, 1))
    assert rank.metrics[Metric.ISOLATED_CALLS] == len(alone) == 3
    assert min(alone) >= answer_at_s
