"""Who reaches whom how: a shard's several addresses, and which of them works from here.

Processes of one node may not share a file system (pods), so a Unix socket is chosen by proving it:
connect, or else the network address.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from cluster.errors import LinkLostError

T = TypeVar("T")
_SEPARATOR = "|"


def join_addresses(addresses: Sequence[str]) -> str:
    """Return one published address out of several, best first."""
    return _SEPARATOR.join(addresses)


def split_addresses(address: str) -> list[str]:
    """Return the addresses in a published one, best first."""
    return address.split(_SEPARATOR)


def connect_any(address: str, connect: Callable[[str], T]) -> T:
    """Return what `connect` gives for the first address of `address` that answers.

    Raises the last address's `LinkLostError`, and any other error of `connect` at once: a peer that
    answers and refuses is reached.
    """
    *preferred, fallback = split_addresses(address)
    for candidate in preferred:
        try:
            return connect(candidate)
        except LinkLostError:
            continue
    return connect(fallback)
