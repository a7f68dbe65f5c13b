"""A shard's address is the first that works from here."""

from __future__ import annotations

from cluster.placement import Placement, ShardInfo
from cluster.topology import join_addresses, resolve, split_addresses
from cluster.types import PlacementVersion, ShardId


def placement_at(address: str) -> Placement:
    return Placement.sliced(PlacementVersion(1, 1), (ShardInfo(ShardId(0), address, 1),), 1, 2)


def test_the_first_working_address_is_taken() -> None:
    address = join_addresses(["unix:/a", "grpc://h:1"])
    resolved = resolve(placement_at(address), works=lambda _: True)
    assert resolved.shards[0].address == "unix:/a"


def test_the_last_address_is_taken_without_proof() -> None:
    asked: list[str] = []

    def fails(address: str) -> bool:
        asked.append(address)
        return False

    resolved = resolve(placement_at("unix:/a|grpc://h:1"), fails)
    assert resolved.shards[0].address == "grpc://h:1"
    assert asked == ["unix:/a"]


def test_joined_addresses_come_apart_again() -> None:
    assert split_addresses(join_addresses(["unix:/a", "grpc://h:1"])) == ["unix:/a", "grpc://h:1"]
