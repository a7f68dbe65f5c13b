"""The transports that the contract is for: a new one is one line in `CASES`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cluster.deadline import Deadline
from cluster.errors import TrinityError
from cluster.transport.base import Link, Listener, Transport
from cluster.transport.collective.limits import Limits
from cluster.transport.collective.link import CollectiveLink
from cluster.transport.collective.transport import PREFIX, CollectiveTransport
from cluster.transport.grpc import GrpcTransport
from cluster.transport.inproc import InprocTransport
from cluster.transport.local import LocalTransport
from cluster.transport.poller import Poller
from cluster.types import PlacementVersion
from cluster.wire import DEFAULT_MAX_FRAME_BYTES, Frame, Welcome

DEADLINE_S = 10.0
ALL_ROWS = Limits(least_rows_bytes=1, exchange_s=5.0)
"""Every row by the group, and a busy machine is no reason to drop it."""


@dataclass(frozen=True)
class Case:
    """How to make one transport, and what it is."""

    make: Callable[[int], Transport]
    """With a bound of frames in bytes."""
    bind: Callable[[Path], str]
    has_bytes: bool = True
    """Whether frames become bytes at all; by reference there is no bound and no garbage."""
    between_processes: bool = True
    """Whether tests with processes of their own use it too, which take longer."""


def collective(bound: int) -> CollectiveTransport:
    """Rows by Gloo from the first byte on."""
    return CollectiveTransport(ALL_ROWS, max_frame_bytes=bound)


CASES = {
    "inproc": Case(
        lambda _: InprocTransport(),
        lambda _: "inproc:shard",
        has_bytes=False,
        between_processes=False,
    ),
    "unix": Case(LocalTransport, lambda folder: f"unix:{folder}/s/socket"),
    "grpc": Case(
        lambda bound: GrpcTransport(max_frame_bytes=bound), lambda _: "grpc://127.0.0.1:0"
    ),
    "collective+unix": Case(collective, lambda folder: f"collective+unix:{folder}/c/socket"),
    # The same groups beside another base.
    "collective+grpc": Case(
        collective, lambda _: "collective+grpc://127.0.0.1:0", between_processes=False
    ),
}
PROCESS_BINDS = {name: case.bind for name, case in CASES.items() if case.between_processes}


@dataclass
class End:
    """A link with a poller of its own, and what has come over it."""

    poller: Poller
    link: Link
    arrived: list[Frame | TrinityError] = field(default_factory=list)

    def turn(self) -> None:
        """Take what is there."""
        self.arrived += [item for _, item in self.poller.wait(0.0)]


@dataclass
class Pair:
    """Two connected ends in one thread."""

    transport: Transport
    listener: Listener
    rank: End
    shard: End

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Turn both ends until the condition holds; fail after a deadline."""
        deadline = Deadline.after(DEADLINE_S)
        while not condition():
            self.rank.turn()
            self.shard.turn()
            assert not deadline.expired(), f"{what} did not happen within {DEADLINE_S} s"
            time.sleep(0)

    def close(self) -> None:
        """Free both ends and the listener."""
        for end in (self.rank, self.shard):
            end.poller.remove(end.link)
            end.link.close()
            end.poller.close()
        self.listener.close()


def open_pair(
    case: Case, folder: Path, max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES, bound: int = 0
) -> Pair:
    """Connect two ends; `bound` is the shard's bound of frames when it is another."""
    transport = case.make(max_frame_bytes)
    serving = case.make(bound) if bound else transport
    listener = serving.listen(case.bind(folder))
    pair = connect_pair(transport, listener)
    form_group(pair)
    return pair


def form_group(pair: Pair) -> None:
    """Where the transport has groups, let the ends form one, as a handshake would."""
    ends = (pair.rank.link, pair.shard.link)
    if not isinstance(ends[0], CollectiveLink):
        return
    ends[1].send(Welcome(0, 0, PlacementVersion(0, 0)))
    pair.until(lambda: all(isinstance(e, CollectiveLink) and e.generation for e in ends), "a group")
    pair.rank.arrived.clear()


def connect_pair(transport: Transport, listener: Listener) -> Pair:
    """Connect one more rank to a listener."""
    link = transport.connect(listener.address, Deadline.after(DEADLINE_S))
    rank, shard = Poller(), Poller()
    rank.add(link)
    accepted = accept(listener)
    shard.add(accepted)
    return Pair(transport, listener, End(rank, link), End(shard, accepted))


def base_of(address: str) -> str:
    """Return the address that a link's frames go to, whatever goes beside them."""
    return address.removeprefix(PREFIX)


def accept(listener: Listener) -> Link:
    """Return the next link of a listener."""
    deadline = Deadline.after(DEADLINE_S)
    while (link := listener.accept()) is None:
        assert not deadline.expired(), "no link came"
        time.sleep(0)
    return link
