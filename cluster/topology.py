"""Who reaches whom how: a shard's several addresses, and which of them works from here.

Processes of one node may not share a file system (pods), so a Unix socket is chosen by proving it:
connect, or else the network address.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cluster.placement import Placement, ShardInfo

_SEPARATOR = "|"


def join_addresses(addresses: list[str]) -> str:
    """Return one published address out of several, best first."""
    return _SEPARATOR.join(addresses)


def split_addresses(address: str) -> list[str]:
    """Return the addresses in a published one, best first."""
    return address.split(_SEPARATOR)


def resolve(placement: Placement, works: Callable[[str], bool]) -> Placement:
    """Return `placement` with the first working address of each shard.

    The last alternative is taken unproved: it is the one that works everywhere or nothing does, and
    the link's own error says so. `works` may block; it is asked once per alternative and shard.
    """
    shards = tuple(_resolve_shard(shard, works) for shard in placement.shards)
    return replace(placement, shards=shards)


def _resolve_shard(shard: ShardInfo, works: Callable[[str], bool]) -> ShardInfo:
    *preferred, fallback = split_addresses(shard.address)
    chosen = next((address for address in preferred if works(address)), fallback)
    return replace(shard, address=chosen)
