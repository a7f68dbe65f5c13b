"""A shard is reached at the first of its addresses that answers from here."""

from __future__ import annotations

import pytest

from cluster.errors import LinkLostError, WrongModelError
from cluster.topology import connect_any, join_addresses, split_addresses

ADDRESS = join_addresses(["unix:/a", "grpc://h:1"])


class Network:
    """Answers at some addresses and notes what was tried."""

    def __init__(self, *answering: str) -> None:
        self.answering = answering
        self.tried: list[str] = []

    def connect(self, address: str) -> str:
        self.tried.append(address)
        if address in self.answering:
            return f"link to {address}"
        raise LinkLostError(address, "nobody answers")


def test_the_first_address_that_answers_is_taken() -> None:
    network = Network("unix:/a", "grpc://h:1")
    assert connect_any(ADDRESS, network.connect) == "link to unix:/a"
    assert network.tried == ["unix:/a"]


def test_the_network_serves_where_no_file_system_is_shared() -> None:
    assert connect_any(ADDRESS, Network("grpc://h:1").connect) == "link to grpc://h:1"


def test_when_none_answers_the_last_error_is_raised() -> None:
    with pytest.raises(LinkLostError, match="grpc://h:1"):
        connect_any(ADDRESS, Network().connect)


def test_a_refusal_is_an_answer() -> None:
    tried = []

    def refuse(address: str) -> str:
        tried.append(address)
        raise WrongModelError("another model")

    with pytest.raises(WrongModelError):
        connect_any(ADDRESS, refuse)
    assert tried == ["unix:/a"]


def test_joined_addresses_come_apart_again() -> None:
    assert split_addresses(ADDRESS) == ["unix:/a", "grpc://h:1"]
