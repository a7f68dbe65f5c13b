"""The loop with ranks in this process and a clock of the test's own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch

from cluster.deadline import Deadline
from cluster.errors import LinkLostError
from cluster.model_config import AfmoeConfig
from cluster.transport.base import Link
from cluster.transport.inproc import InprocTransport
from cluster.wire import Busy, CallError, CallId, ExpertCall, ExpertReply, Frame, Hello, Welcome
from experts.shard_loop import HANDSHAKE_S, ShardLoop
from tests.support.frames import a_call
from tests.support.shards import random_shard, reference_fingerprint


@dataclass
class House:
    """A loop, its clock, and links to it. `run_once` is called by the test alone."""

    config: AfmoeConfig
    now_s: float = 100.0
    product_s: float = 0.0
    """How long the clock says that a product takes."""
    products: list[int] = field(default_factory=list)
    """Calls per product."""

    def __post_init__(self) -> None:
        self.transport = InprocTransport()
        self.shard = random_shard(self.config)
        compute = self.shard.compute

        def slow_compute(calls: list[ExpertCall]) -> list[torch.Tensor]:
            self.products.append(len(calls))
            self.now_s += self.product_s
            return compute(calls)

        self.shard.compute = slow_compute  # type: ignore[method-assign, assignment]
        fingerprint = reference_fingerprint(self.config)
        self.hello = Hello(fingerprint, 0, 1, 1, "")
        listener = self.transport.listen("inproc:shard")
        self.loop = ShardLoop(self.shard, [listener], fingerprint, clock=lambda: self.now_s)

    def stranger(self) -> Link:
        return self.transport.connect("inproc:shard", Deadline.after(1.0))

    def rank(self, number: int) -> Link:
        link = self.stranger()
        link.send(replace(self.hello, rank=number))
        self.loop.run_once(0.0)
        assert isinstance(link.receive(), Welcome)
        return link

    def call(self, rank: int, layer: int, num_tokens: int = 2) -> ExpertCall:
        call_id = CallId(rank, 1, 0, 0, layer, 0)
        width = self.config.hidden_size
        call = a_call(num_tokens, (0, 3), call_id=call_id, width=width, dtype=torch.float32)
        return replace(call, model=self.hello.fingerprint.model)

    def frames(self, link: Link) -> list[Frame]:
        found = []
        while (frame := link.receive()) is not None:
            found.append(frame)
        return found

    def step(self, links: list[Link]) -> None:
        """Both ranks' first layer, together."""
        for number, link in enumerate(links):
            link.send(self.call(number, 0))
        self.loop.run_once(0.0)
        self.now_s += 1.0
        self.loop.run_once(0.0)


@pytest.fixture
def house(tiny_config: AfmoeConfig) -> House:
    return House(tiny_config)


def test_calls_of_ranks_in_step_run_as_one_product(house: House) -> None:
    links = [house.rank(0), house.rank(1)]
    house.product_s = 0.1
    for _ in range(3):
        house.step(links)
    house.products.clear()
    links[0].send(house.call(0, 1))
    house.loop.run_once(0.0)
    assert house.products == []
    links[1].send(house.call(1, 1))
    house.loop.run_once(0.0)
    assert house.products == [2]
    assert house.loop.num_products < house.loop.num_calls
    assert all(isinstance(house.frames(link)[-1], ExpertReply) for link in links)


def test_calls_that_waited_are_gone_with_their_rank(house: House) -> None:
    links = [house.rank(0), house.rank(1)]
    house.product_s = 0.1
    for _ in range(3):
        house.step(links)
    house.products.clear()
    links[0].send(house.call(0, 1))
    house.loop.run_once(0.0)
    links[0].close()
    house.now_s += 10.0
    house.loop.run_once(0.0)
    assert house.products == []
    assert house.loop.num_ranks == 1


def in_step(house: House) -> list[Link]:
    """Three ranks that have shared their products."""
    links = [house.rank(number) for number in range(3)]
    house.product_s = 0.1
    for _ in range(3):
        house.step(links)
    assert house.products[-1] == 3
    house.products.clear()
    return links


def send_to_two(house: House, links: list[Link], layer: int) -> None:
    """Let the first two of three ranks call."""
    for number in range(2):
        links[number].send(house.call(number, layer))
    house.loop.run_once(0.0)


def test_a_rank_that_falls_silent_holds_the_others_up_for_one_window(house: House) -> None:
    links = in_step(house)
    send_to_two(house, links, layer=1)
    assert house.products == []
    # Later layers wait for a quarter of a product's time.
    house.now_s += 0.25 * house.product_s
    house.loop.run_once(0.0)
    assert house.products == [2]
    send_to_two(house, links, layer=2)
    assert house.products == [2, 2]


def test_a_slow_rank_is_served_late_and_alone_while_the_others_go_on(house: House) -> None:
    links = in_step(house)
    for layer in (1, 2, 3):
        send_to_two(house, links, layer)
        house.now_s += 0.25 * house.product_s
        house.loop.run_once(0.0)
    links[2].send(house.call(2, 1))
    house.loop.run_once(0.0)
    assert house.products == [2, 2, 2, 1]
    assert isinstance(house.frames(links[2])[-1], ExpertReply)


def test_nobody_waits_for_a_dead_rank_whatever_its_calls_named_it(house: House) -> None:
    """A rank's calls may carry another incarnation than its handshake."""
    house.hello = replace(house.hello, incarnation=house.hello.incarnation + 1)
    links = in_step(house)
    links[2].close()
    house.loop.run_once(0.0)
    for layer in (1, 2):
        send_to_two(house, links, layer)
        assert house.products == [2] * layer


def test_a_long_product_is_announced_to_every_rank_before_it_starts(house: House) -> None:
    links = [house.rank(0), house.rank(1)]
    house.product_s = 3.0
    links[0].send(house.call(0, 1, num_tokens=100))
    house.loop.run_once(0.0)
    house.frames(links[1])
    links[0].send(house.call(0, 2, num_tokens=100))
    house.loop.run_once(0.0)
    house.now_s += 10.0
    house.loop.run_once(0.0)
    (busy,) = house.frames(links[1])
    assert isinstance(busy, Busy)
    assert busy.for_us >= 3_000_000
    kinds = [type(frame) for frame in house.frames(links[0])]
    assert kinds[-2:] == [Busy, ExpertReply]


def test_a_short_product_is_not_announced(house: House) -> None:
    link = house.rank(0)
    for layer in range(3):
        link.send(house.call(0, layer))
        house.loop.run_once(0.0)
    assert {type(frame) for frame in house.frames(link)} == {ExpertReply}


def test_a_reply_tells_waiting_from_computing(house: House) -> None:
    link = house.rank(0)
    house.product_s = 0.5
    link.send(house.call(0, 0))
    house.loop.run_once(0.0)
    reply = house.frames(link)[-1]
    assert isinstance(reply, ExpertReply)
    assert (reply.queue_us, reply.compute_us) == (0, 500_000)


def test_a_link_that_never_says_who_it_is_is_closed(house: House) -> None:
    stranger, rank = house.stranger(), house.rank(0)
    house.now_s += 1.0
    house.loop.run_once(0.0)
    house.now_s += HANDSHAKE_S + 1.0
    house.loop.run_once(0.0)
    with pytest.raises(LinkLostError):
        stranger.receive()
    rank.send(house.call(0, 0))
    house.loop.run_once(0.0)
    assert isinstance(house.frames(rank)[-1], ExpertReply)


def test_closing_ends_every_link(house: House) -> None:
    links = [house.rank(0), house.stranger()]
    house.loop.run_once(0.0)
    house.loop.close()
    for link in links:
        with pytest.raises(LinkLostError):
            link.receive()


def test_a_call_whose_expert_is_freed_while_it_waits_is_refused(house: House) -> None:
    links = [house.rank(0), house.rank(1)]
    house.product_s = 0.1
    for _ in range(3):
        house.step(links)
    links[0].send(house.call(0, 1))
    house.loop.run_once(0.0)
    house.shard.store.drop(1, 3)
    house.shard.refresh()
    house.now_s += 10.0
    house.loop.run_once(0.0)
    refused = house.frames(links[0])[-1]
    assert isinstance(refused, CallError)
    assert refused.code == "expert_not_held"
    assert refused.placement_version == house.shard.placement_version


def test_a_loop_is_idle_since_its_last_turn_beyond_what_it_announced(house: House) -> None:
    house.loop.run_once(0.0)
    house.now_s += 2.0
    assert house.loop.idle_s() == pytest.approx(2.0)
    house.loop.run_once(0.0)
    assert house.loop.idle_s() == 0.0
