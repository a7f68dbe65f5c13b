"""Whatever fails on the way, the rows that come back are those of an undisturbed call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from cluster.errors import (
    CoverageLostError,
    LinkLostError,
    NonFiniteRowsError,
    ShardFailedError,
    TrinityError,
)
from cluster.metrics import Metric
from cluster.wire import ExpertCall, Refused
from router.config import DispatchConfig
from router.plan import Int64
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


@pytest.mark.parametrize("copies", [ALTERNATING, [[0]] * 8, [[1]] * 8, [[0]] * 7 + [[1]]])
def test_rows_are_those_of_the_experts_and_each_call_is_sent_once(
    rank: FakeRank, copies: list[list[int]]
) -> None:
    shards = two_shards(rank, copies)
    for layer in (0, 1):
        assert_rows_are_right(rank, layer)
    used = len({place for [place] in copies})
    assert sum(len(shard.calls) for shard in shards) == 2 * used
    assert rank.metrics[Metric.DISPATCH_CALLS] == 2 * used
    assert rank.metrics[Metric.DISPATCH_ROWS] == 2 * TOPK_IDS.size
    assert rank.metrics[Metric.DISPATCH_RETRIES] == 0
    assert nothing_is_open(rank)


def test_two_micro_batches_of_one_layer_are_told_apart(rank: FakeRank) -> None:
    first, _ = two_shards(rank, ALTERNATING)
    first.answers.extend([first.late(0.2), first.late(0.1)])
    other = HIDDEN + 1
    one = rank.dispatcher.dispatch(0, HIDDEN, TOPK_IDS, 0)
    two = rank.dispatcher.dispatch(0, other, TOPK_IDS, 1)
    rows = rows_by_slot(*rank.dispatcher.collect(one))
    assert torch.equal(rows, wanted_rows(HIDDEN, TOPK_IDS, 0))
    rows = rows_by_slot(*rank.dispatcher.collect(two))
    assert torch.equal(rows, wanted_rows(other, TOPK_IDS, 0))


FAULTS: dict[str, Callable[[FakeShard], Answer]] = {
    "dies": lambda shard: shard.die_at_call,
    "breaks the link": lambda shard: shard.blip,
    "fails": lambda shard: shard.error("shard_failed"),
    "answers too few rows": lambda shard: shard.wrong_shape,
    "answers another dtype": lambda shard: shard.wrong_dtype,
    "answers what cannot be decoded": lambda shard: shard.undecodable,
    "cannot read the call": lambda shard: (
        lambda link, call: shard.say(link, Refused("checksum_mismatch", "damaged"))
    ),
    "answers pings only": lambda shard: shard.ignore,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_rows_of_a_shard_that_fails_come_from_the_replica(rank: FakeRank, fault: str) -> None:
    first, second = two_shards(rank, REPLICATED)
    first.answers.append(FAULTS[fault](first))
    assert_rows_are_right(rank)
    assert rank.metrics[Metric.DISPATCH_RETRIES] == 1
    assert rank.metrics[Metric.SHARDS_LOST] == 1
    assert rank.metrics[Metric.COVERAGE_STALLS] == 0
    assert rank.lost == [0]
    assert [call.call_id.attempt for call in second.calls] == [0, 1]
    assert nothing_is_open(rank)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "dies"])
def test_without_a_replica_a_living_shard_is_asked_again_over_a_new_link(
    rank: FakeRank, fault: str
) -> None:
    first, _ = two_shards(rank, ALTERNATING)
    first.answers.append(FAULTS[fault](first))
    assert_rows_are_right(rank)
    assert len(first.links) == 2
    assert first.links[0].closed
    assert rank.metrics[Metric.COVERAGE_STALLS] == 1


def test_a_shard_that_is_silent_altogether_is_given_up_long_before_its_call_times_out(
    rank: FakeRank,
) -> None:
    first, _ = two_shards(rank, REPLICATED)
    first.silent = True
    start_s = rank.world.now_s
    assert_rows_are_right(rank)
    assert rank.world.now_s - start_s < rank.config.dead_after_s + 0.6


def test_a_shard_that_answers_pings_only_is_given_up_when_its_call_times_out(
    rank: FakeRank,
) -> None:
    first, _ = two_shards(rank, REPLICATED)
    first.answers.append(first.ignore)
    start_s = rank.world.now_s
    assert_rows_are_right(rank)
    took_s = rank.world.now_s - start_s
    assert rank.config.call_timeout_s < took_s < rank.config.call_timeout_s + 1.0


def test_without_a_replica_rows_wait_for_the_restarted_shard(rank: FakeRank) -> None:
    first, second = two_shards(rank, ALTERNATING)
    first.answers.append(first.die_at_call)

    def restart() -> None:
        again = rank.world.add(0, incarnation=2)
        rank.dispatcher.publish(placement_of([again, second], ALTERNATING, counter=2))

    rank.world.later(2.0, restart)
    assert_rows_are_right(rank)
    # Rows of the shard that lived were not asked for twice.
    assert len(second.calls) == 1
    assert rank.metrics[Metric.COVERAGE_STALLS] == 1


def test_a_layer_that_starts_while_a_shard_is_away_waits_for_it_only(rank: FakeRank) -> None:
    first, second = two_shards(rank, ALTERNATING)
    first.die()
    rank.dispatcher.wait(0.1)
    assert rank.dispatcher.missing() != []
    rank.world.later(1.0, lambda: setattr(first, "reachable", True))
    assert_rows_are_right(rank)
    assert rank.dispatcher.missing() == []
    assert len(second.calls) == 1


def test_coverage_lost_for_longer_than_the_grace_time_fails_the_step_and_frees_it(
    rank: FakeRank,
) -> None:
    first, second = two_shards(rank, ALTERNATING)
    first.answers.append(first.die_at_call)
    start_s = rank.world.now_s
    with pytest.raises(CoverageLostError) as caught:
        rank.layer(HIDDEN, TOPK_IDS)
    waited_s = rank.world.now_s - start_s
    assert rank.config.coverage_grace_s < waited_s < rank.config.coverage_grace_s + 0.2
    assert caught.value.num_experts == 4
    assert nothing_is_open(rank)
    # A step whose experts all live goes through all the same, and so does the next one.
    rank.dispatcher.begin_step()
    odd = np.array([[1, 3], [5, 7]])
    assert torch.equal(rank.layer(HIDDEN[:2], odd), wanted_rows(HIDDEN[:2], odd, 0))
    first.reachable = True
    rank.dispatcher.wait(1.0)
    rank.dispatcher.begin_step()
    assert_rows_are_right(rank)
    assert len(second.calls) == 3


def test_rows_that_come_meanwhile_renew_the_grace_time(rank: FakeRank) -> None:
    first, second = two_shards(rank, ALTERNATING)
    first.answers.append(first.die_at_call)
    second.answers.append(second.late(2.5))
    rank.world.later(6.5, lambda: setattr(first, "reachable", True))
    assert_rows_are_right(rank)


def test_a_shard_that_always_answers_with_an_error_fails_the_step_in_the_end(
    rank: FakeRank,
) -> None:
    first, _ = two_shards(rank, ALTERNATING)
    first.answer_always = first.error("expert_not_held")
    with pytest.raises(ShardFailedError, match="expert_not_held") as caught:
        rank.layer(HIDDEN, TOPK_IDS)
    assert caught.value.shard == 0
    assert nothing_is_open(rank)


def test_two_copies_that_always_fail_are_not_asked_for_ever(rank: FakeRank) -> None:
    first, second = two_shards(rank, REPLICATED)
    first.answer_always = first.wrong_shape
    second.answer_always = second.blip
    start_s = rank.world.now_s
    with pytest.raises(TrinityError):
        rank.layer(HIDDEN, TOPK_IDS)
    assert rank.world.now_s - start_s < 2 * rank.config.coverage_grace_s
    assert nothing_is_open(rank)


def test_a_copy_that_is_back_at_once_after_every_failure_is_not_asked_for_ever(
    world: World,
) -> None:
    rank = FakeRank(world, DispatchConfig(coverage_grace_s=5.0, reconnect_every_s=0.0))
    first, _ = two_shards(rank, [[0]] * NUM_EXPERTS)
    first.answer_always = first.blip
    with pytest.raises(LinkLostError, match="reset"):
        rank.layer(HIDDEN, TOPK_IDS)
    assert rank.metrics[Metric.COVERAGE_STALLS] == 0
    rank.dispatcher.close()


@pytest.mark.parametrize("code", ["frame_too_large", "malformed_frame"])
def test_a_call_that_no_shard_could_take_fails_at_once_and_keeps_the_link(
    rank: FakeRank, code: str
) -> None:
    first, second = two_shards(rank, REPLICATED)
    first.answers.append(first.error(code))
    with pytest.raises(ShardFailedError, match=code):
        rank.layer(HIDDEN, TOPK_IDS)
    assert rank.lost == []
    assert nothing_is_open(rank)
    rank.dispatcher.begin_step()
    assert_rows_are_right(rank)
    assert len(first.links) == len(second.links) == 1


def test_a_late_reply_of_an_older_attempt_is_dropped_and_counted(rank: FakeRank) -> None:
    first, _ = two_shards(rank, ALTERNATING)
    seen: list[tuple[FakeLink, ExpertCall]] = []

    def keep(link: FakeLink, call: ExpertCall) -> None:
        seen.append((link, call))
        first.blip(link, call)

    def old_then_new(link: FakeLink, call: ExpertCall) -> None:
        old = first.good_reply(seen[0][1])
        first.say(link, replace(old, rows_ND=old.rows_ND * 0 + 99))
        first.reply(link, call, after_s=0.1)

    first.answers.extend([keep, old_then_new])
    assert_rows_are_right(rank)
    assert rank.metrics[Metric.LATE_REPLIES] == 1


@pytest.mark.parametrize(
    "change",
    [{"incarnation": 4}, {"rank": 3}, {"step": 9}, {"micro_batch": 1}, {"layer": 1}],
    ids=str,
)
def test_a_reply_to_another_call_is_dropped_and_the_right_one_awaited(
    rank: FakeRank, change: dict[str, int]
) -> None:
    first, _ = two_shards(rank, ALTERNATING)

    def foreign_then_own(link: FakeLink, call: ExpertCall) -> None:
        foreign = first.good_reply(call)
        call_id = call.call_id._replace(**change)
        first.say(link, replace(foreign, call_id=call_id, rows_ND=foreign.rows_ND * 0))
        first.reply(link, call, after_s=0.1)

    first.answers.append(foreign_then_own)
    assert_rows_are_right(rank)
    assert rank.metrics[Metric.LATE_REPLIES] == 1


def test_a_reply_that_comes_while_the_rank_idles_is_counted_as_late(rank: FakeRank) -> None:
    first, second = two_shards(rank, ALTERNATING)
    first.answers.append(first.error("malformed_frame"))
    second.answers.append(second.late(0.2))
    with pytest.raises(ShardFailedError):
        rank.layer(HIDDEN, TOPK_IDS)
    for _ in range(3):
        rank.dispatcher.wait(0.2)
    assert rank.metrics[Metric.LATE_REPLIES] == 1


def fetch_finite(rank: FakeRank) -> Tensor:
    """Do as the decoder does: ask again while rows are not finite."""
    handle = rank.dispatcher.dispatch(0, HIDDEN, TOPK_IDS)
    rows = rank.dispatcher.collect(handle)
    while not torch.isfinite(rows[0]).all():
        rank.dispatcher.ask_again(handle)
        rows = rank.dispatcher.collect(handle)
    return rows_by_slot(*rows)


def test_rows_that_are_not_finite_once_are_fetched_again(rank: FakeRank) -> None:
    first, second = two_shards(rank, ALTERNATING)
    first.answers.append(first.not_finite)
    assert torch.equal(fetch_finite(rank), wanted_rows(HIDDEN, TOPK_IDS, 0))
    assert rank.metrics[Metric.NON_FINITE_REPLIES] == 1
    # What the other shard gave was fine, and stays.
    assert (len(first.calls), len(second.calls)) == (2, 1)
    assert nothing_is_open(rank)


def test_rows_that_are_not_finite_twice_are_an_error(rank: FakeRank) -> None:
    first, _ = two_shards(rank, ALTERNATING)
    first.answers.extend([first.not_finite, first.not_finite])
    with pytest.raises(NonFiniteRowsError):
        fetch_finite(rank)
    assert rank.metrics[Metric.NON_FINITE_REPLIES] == 2
    assert nothing_is_open(rank)


def test_a_shard_that_dies_while_rows_are_fetched_again_is_replaced(rank: FakeRank) -> None:
    first, _ = two_shards(rank, REPLICATED)
    first.answers.extend([first.not_finite, first.die_at_call])
    assert torch.equal(fetch_finite(rank), wanted_rows(HIDDEN, TOPK_IDS, 0))


def test_two_shards_lost_at_once_are_both_replaced(rank: FakeRank) -> None:
    shards = [rank.world.add(index) for index in range(4)]
    copies = [[expert % 4, (expert + 2) % 4] for expert in range(NUM_EXPERTS)]
    rank.dispatcher.publish(placement_of(shards, copies))
    rank.dispatcher.begin_step()

    def both_die(link: FakeLink, call: ExpertCall) -> None:
        shards[0].die()
        shards[1].die()

    shards[0].answers.append(both_die)
    shards[1].answers.append(shards[1].ignore)
    assert_rows_are_right(rank)
    assert sorted(rank.lost) == [0, 1]


def test_the_replica_that_dies_with_the_first_copy_leaves_rows_waiting(rank: FakeRank) -> None:
    first, second = two_shards(rank, REPLICATED)

    def both_die(link: FakeLink, call: ExpertCall) -> None:
        first.die()
        second.die()

    first.answers.append(both_die)
    rank.world.later(1.0, lambda: setattr(second, "reachable", True))
    assert_rows_are_right(rank)


def test_shards_without_rows_get_a_header_when_there_are_other_ranks(world: World) -> None:
    rank = FakeRank(world)
    first, second = two_shards(rank, [[0]] * 7 + [[1]])
    placement = placement_of([first, second], [[0]] * 7 + [[1]], counter=2)
    rank.dispatcher.publish(replace(placement, num_ranks=2))
    rank.dispatcher.begin_step()
    few = np.array([[0, 1], [2, 3]])
    assert torch.equal(rank.layer(HIDDEN[:2], few), wanted_rows(HIDDEN[:2], few, 0))
    [header] = second.calls
    assert len(header.expert_ids_G) == 0
    assert header.hidden_TD.shape == (0, 6)
    assert header.call_id == first.calls[0].call_id
    # A dead shard is sent nothing, and is not lost once more with every layer.
    second.die()
    rank.dispatcher.wait(0.1)
    for layer in range(2):
        assert torch.equal(rank.layer(HIDDEN[:2], few, layer), wanted_rows(HIDDEN[:2], few, layer))
    assert rank.metrics[Metric.SHARDS_LOST] == 1
    rank.dispatcher.close()


def test_a_listener_sees_the_choice_of_every_dispatch(rank: FakeRank) -> None:
    two_shards(rank, ALTERNATING)
    seen: list[tuple[int, Int64]] = []
    rank.dispatcher.observe = lambda layer, ids: seen.append((layer, ids.numpy().copy()))
    assert_rows_are_right(rank, layer=1)
    [(layer, ids)] = seen
    assert layer == 1
    assert np.array_equal(ids, TOPK_IDS)


def test_a_layer_that_waits_for_its_shards_shows_that_the_rank_goes_on(rank: FakeRank) -> None:
    first, _ = two_shards(rank, ALTERNATING)
    first.answers.append(first.late(2.0))
    began_s = rank.dispatcher.last_sign_at_s
    assert_rows_are_right(rank, 0)
    assert rank.dispatcher.last_sign_at_s >= began_s + 1.5
