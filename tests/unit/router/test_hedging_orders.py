"""Any order of late answers, duplicates, losses and placements: each row once, in the budget."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import LinkLostError, PoisonedRequestError
from cluster.metrics import Metric
from cluster.wire import ExpertCall
from router.config import DispatchConfig
from router.hedging import BURST
from router.isolation import RowRequests
from tests.fakes.shard_world import (
    FakeLink,
    FakeRank,
    FakeShard,
    World,
    placement_of,
    rows_by_slot,
    wanted_rows,
)
from tests.support.dispatching import NUM_EXPERTS, nothing_is_open

SHARE = 0.05
NUM_SHARDS = 3
RING = [[expert % 3, (expert + 1) % 3] for expert in range(NUM_EXPERTS)]
EVERYWHERE = [[expert % 3, (expert + 1) % 3, (expert + 2) % 3] for expert in range(NUM_EXPERTS)]
PARTLY = [*RING[:-1], [1]]
EVENTS = ("late", "late", "later", "twice", "slow", "kill", "blip", "silence", "restart", "swap")
LETHAL = ("kill", "restart")
WARM_UP = 40
REQUESTS = RowRequests(np.array([0, 2, 3, 5], np.int32))


def duplicated(link: FakeLink, call: ExpertCall) -> None:
    """Answer twice, the second time late and wrongly."""
    shard = link.shard
    reply = shard.good_reply(call)
    shard.say(link, reply)
    shard.say(link, replace(reply, rows_ND=reply.rows_ND * 0 + 99), after_s=0.07)


def happen(
    event: str, index: int, rank: FakeRank, shards: list[FakeShard], copies: list[list[int]]
) -> None:
    """Let one thing befall a shard; whatever it is, the shard is well again some time later."""
    world, shard = rank.world, shards[index]
    if event in ("late", "later"):
        shard.answers.append(shard.late(0.06 if event == "late" else 1.1))
    elif event == "twice":
        shard.answers.extend([duplicated] * 3)
    elif event == "slow":
        shard.answer_always = shard.late(0.2)
        world.later(1.5, lambda: setattr(shard, "answer_always", None))
    elif event == "blip":
        for link in shard.links:
            shard.say(link, LinkLostError(link.peer, "reset"), after_s=0.0)
    elif event == "silence":
        shard.silent = True
        world.later(2.5, lambda: setattr(shard, "silent", False))
    elif event == "kill":
        shard.die()
        world.later(1.0, lambda: setattr(shard, "reachable", True))
    else:
        if event == "restart":
            shard.die()
            shards[index] = world.add(shard.shard_id, shard.incarnation + 1)
        order = shards[::-1] if event == "swap" else shards
        rank.dispatcher.publish(
            replace(placement_of(order, copies, next(world.counters)), num_ranks=2)
        )


def random_layer(rank: FakeRank, random: np.random.Generator, layer: int) -> None:
    ids = np.stack([random.permutation(NUM_EXPERTS)[:3] for _ in range(5)])
    hidden = torch.from_numpy(random.standard_normal((5, 4), np.float32))
    handle = rank.dispatcher.dispatch(layer, hidden, ids, 0, REQUESTS)
    rows = rows_by_slot(*rank.dispatcher.collect(handle))
    assert torch.equal(rows, wanted_rows(hidden, ids, layer))


@settings(max_examples=50, deadline=None)
@given(
    plot=st.lists(
        st.tuples(
            st.floats(0.0, 3.0),
            st.sampled_from(EVENTS),
            st.integers(0, NUM_SHARDS - 1),
        ),
        min_size=1,
        max_size=16,
    ),
    copies=st.sampled_from([RING, EVERYWHERE, PARTLY]),
    seed=st.integers(0, 1000),
)
def test_no_order_of_answers_and_losses_changes_a_row_or_exceeds_the_budget(
    plot: list[tuple[float, str, int]], copies: list[list[int]], seed: int
) -> None:
    world = World()
    config = DispatchConfig(call_timeout_s=2.0, hedge_share=SHARE, coverage_grace_s=30.0)
    rank = FakeRank(world, config)
    shards = [world.add(index) for index in range(NUM_SHARDS)]
    rank.dispatcher.publish(replace(placement_of(shards, copies), num_ranks=2))
    random = np.random.default_rng(seed)
    rank.dispatcher.begin_step()
    for layer in range(WARM_UP):
        random_layer(rank, random, layer % 2)
    for after_s, event, index in plot:
        world.later(after_s, partial(happen, event, index, rank, shards, copies))
    for _ in range(6):
        rank.dispatcher.begin_step()
        # Two shards that end with one request's rows alone in flight look like its deed.
        lethal = sum(event in LETHAL for _, event, _ in plot) > 1
        with suppress(PoisonedRequestError) if lethal else nullcontext():
            for layer in range(2):
                random_layer(rank, random, layer)
                world.now_s += 0.2
        assert nothing_is_open(rank)
    hedged = rank.metrics[Metric.HEDGED_CALLS]
    assert hedged <= BURST + SHARE * (rank.metrics[Metric.DISPATCH_CALLS] - hedged)
    assert rank.metrics[Metric.HEDGES_WON] <= hedged
    rank.dispatcher.close()
    assert all(link.closed for shard in world.shards.values() for link in shard.links)
