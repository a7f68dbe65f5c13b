"""The store of a group, whose keys travel over the link, and where an end of a group is."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import torch

from cluster.transport.collective.limits import Limits
from cluster.transport.collective.negotiation import Place, own_address_towards
from cluster.transport.collective.pairs import GlooPair, LaneStore, StoreClosedError


def joined_stores(timeout_s: float) -> tuple[LaneStore, LaneStore]:
    """Two stores that tell each other every key at once."""
    stores: list[LaneStore] = []

    def tell_second(key: str, value: bytes) -> None:
        stores[1].feed(key, value)

    stores += [LaneStore(tell_second, timeout_s)]
    stores += [LaneStore(stores[0].feed, timeout_s)]
    return stores[0], stores[1]


def test_a_key_set_at_one_end_is_got_at_both() -> None:
    left, right = joined_stores(5.0)
    left.set("a", "text")
    right.set("b", b"\0bytes")
    assert (right.get("a"), left.get("b"), left.get("a")) == (b"text", b"\0bytes", b"text")
    assert left.check(["a", "b"])
    assert not left.check(["a", "c"])


def test_a_key_that_does_not_come_is_an_error_at_our_own_limit() -> None:
    store = LaneStore(lambda key, value: None, 0.02)
    with pytest.raises(RuntimeError, match="missing"):
        store.wait(["missing"], timedelta(minutes=10))


def test_closing_ends_a_wait() -> None:
    store = LaneStore(lambda key, value: None, 60.0)
    closing = threading.Thread(target=store.close)
    closing.start()
    with pytest.raises(StoreClosedError):
        store.get("never")
    closing.join()


def test_two_ends_in_one_process_exchange_bytes_without_a_world() -> None:
    stores = joined_stores(10.0)
    pairs: dict[int, GlooPair] = {}

    def build(member: int) -> None:
        pairs[member] = GlooPair(stores[member], member, "127.0.0.1")

    threads = [threading.Thread(target=build, args=(member,)) for member in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not torch.distributed.is_initialized()
    sent_B = torch.arange(200, dtype=torch.uint8)
    came_B = torch.zeros_like(sent_B)
    sending = pairs[0].send(sent_B, 7)
    pairs[1].receive(came_B, 7).wait(10.0)
    sending.wait(10.0)
    assert torch.equal(came_B, sent_B)
    for pair in pairs.values():
        pair.close()
    with pytest.raises(RuntimeError, match="closed"):
        pairs[0].send(sent_B, 8)


def test_large_rows_have_longer() -> None:
    limits = Limits(exchange_s=0.5, bytes_per_s=1e6)
    assert limits.exchange_limit_s(0) == 0.5
    assert limits.exchange_limit_s(2_000_000) == 2.5


def test_an_end_is_where_the_other_reaches_it() -> None:
    assert own_address_towards("127.0.0.1") == "127.0.0.1"
    known, learns = Place(torch.device("cpu"), "10.0.0.7"), Place(torch.device("cpu"))
    assert known.seen_by_peer() == known.to_build_at("127.0.0.1") == "10.0.0.7"
    assert learns.to_build_at("127.0.0.1") == "127.0.0.1"
    assert known.backend() == "gloo"
