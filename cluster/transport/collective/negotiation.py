"""Which generation a link is at: offered, built, used, dropped. One end; no rows, no sockets.

Every method is called by the link's owner. What has to be told to the other end goes out through
`notify`; the store's keys come from the generation's thread and are sent by `turn`.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import torch

from cluster.metrics import Metric, Metrics
from cluster.transport.collective.generation import Generation
from cluster.transport.collective.limits import Limits
from cluster.transport.collective.pairs import LaneStore, open_pair
from cluster.transport.mailbox import Doorbell
from cluster.wire import GroupNote, GroupVerb

logger = logging.getLogger(__name__)

_ANY_PORT: Final = 9

Notify = Callable[[GroupNote], None]


class Role(Enum):
    """Which end of the link this is; the rank offers."""

    RANK = 0
    SHARD = 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where this end is."""

    device: torch.device
    """Where its rows are."""
    host: str = ""
    """Our address as the other end reaches it; a shard looks for it when it has an offer."""

    def backend(self) -> str:
        """Return what fits the rows."""
        return "nccl" if self.device.type == "cuda" else "gloo"

    def seen_by_peer(self) -> str:
        """Return what the other end is told: the device for NCCL, our address for Gloo."""
        if self.device.type == "cuda":
            return str(torch.cuda.get_device_properties(self.device).uuid)
        return self.host

    def to_build_at(self, peer_host: str) -> str:
        """Return the `place` of `open_pair`. Raises OSError."""
        if self.device.type == "cuda":
            return str(self.device)
        return self.host or own_address_towards(peer_host)


def own_address_towards(host: str) -> str:
    """Return the address that this process has for `host`; sends nothing. Raises OSError.

    A name may take long to resolve: not for the thread that owns links.
    """
    family = socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM)[0][0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, _ANY_PORT))
        return str(probe.getsockname()[0])


@dataclass
class Negotiation:
    """Makes generations and ends them; `current` is the one being built or in use."""

    role: Role
    place: Place
    limits: Limits
    max_frame_bytes: int
    notify: Notify
    doorbell: Doorbell
    metrics: Metrics
    clock: Callable[[], float] = time.monotonic
    current: Generation | None = None
    newest: int = 0
    """Number of the last generation that began here."""
    least_rows_bytes: int = 0
    welcomed: bool = False
    """Whether the shard has let the rank in: before, nothing is built for it."""
    settled: bool = True
    """Whether the other end has said too that the last generation is over."""
    _keys: deque[GroupNote] = field(default_factory=deque)
    _num_failures: int = 0
    _born_at_s: float = 0.0
    _next_offer_s: float = 0.0

    def turn(self) -> None:
        """Send keys and news of the generation that is being built; offer one when it is time."""
        while self._keys:
            self.notify(self._keys.popleft())
        now = self.current
        if now is None:
            self._offer_when_due()
        elif now.built and not now.announced:
            now.announced = True
            self.notify(GroupNote(GroupVerb.READY, now.number, self.max_frame_bytes))
            self._confirmed(now)

    def take(self, note: GroupNote) -> None:
        """Follow what the other end says, except DROP and ACK. Strangers' notes are ignored."""
        if not self.welcomed:
            return
        if note.verb is GroupVerb.OFFER:
            self._answer_offer(note)
            return
        now = self.current
        if now is None or note.generation != now.number:
            return
        if note.verb is GroupVerb.STORE:
            now.store.feed(note.text, note.data)
        elif note.verb is GroupVerb.READY:
            now.peer_max_bytes = note.number
            self._confirmed(now)

    def end(self, reason: str) -> None:
        """Drop the current generation and say so, with how many exchanges it has received."""
        now, self.current = self.current, None
        if now is None:
            return
        now.release()
        self.settled = False
        self.notify(GroupNote(GroupVerb.DROP, now.number, now.num_received, reason))
        if now.peer_max_bytes:
            self.metrics.inc(Metric.COLLECTIVE_DROPS)
            logger.warning("group %d dropped: %s", now.number, reason)
        lived_s = self.clock() - self._born_at_s
        proven = now.peer_max_bytes and lived_s >= self.limits.proven_after_s
        self._num_failures = 0 if proven else self._num_failures + 1
        pause_s = self.limits.first_pause_s * 2 ** max(0, min(self._num_failures - 1, 16))
        self._next_offer_s = self.clock() + min(pause_s, self.limits.longest_pause_s)

    def close(self) -> None:
        """Give the group up once what was sent has been received."""
        if self.current is not None:
            self.current.release(linger=True)
            self.current = None

    def _confirmed(self, now: Generation) -> None:
        if now.usable:
            self.metrics.inc(Metric.COLLECTIVE_GROUPS)

    def _offer_when_due(self) -> None:
        if self.role is not Role.RANK or not (self.welcomed and self.settled):
            return
        if self.clock() < self._next_offer_s:
            return
        self.least_rows_bytes = self.limits.least_rows_bytes
        backend, seen = self.place.backend(), self.place.seen_by_peer()
        self._begin(self.newest + 1, backend, "")
        least = self.least_rows_bytes
        self.notify(GroupNote(GroupVerb.OFFER, self.newest, least, backend, seen.encode()))

    def _answer_offer(self, note: GroupNote) -> None:
        if self.role is not Role.SHARD or note.generation <= self.newest:
            return
        self.end("the rank offers another group")
        problem = self._problem(note)
        if problem:
            self.newest = note.generation
            self.notify(GroupNote(GroupVerb.DROP, note.generation, 0, problem))
            return
        self.least_rows_bytes = note.number
        self._begin(note.generation, note.text, note.data.decode("utf-8", "replace"))

    def _problem(self, offer: GroupNote) -> str:
        if offer.text != self.place.backend():
            return f"rows are on {self.place.device} here; the rank offers {offer.text}"
        if offer.text == "nccl" and offer.data == self.place.seen_by_peer().encode():
            return "both are on one GPU, which NCCL does not join"
        return ""

    def _begin(self, number: int, backend: str, peer_host: str) -> None:
        keys, doorbell = self._keys, self.doorbell

        def publish(key: str, value: bytes) -> None:
            keys.append(GroupNote(GroupVerb.STORE, number, 0, key, value))
            doorbell.ring()

        store = LaneStore(publish, self.limits.build_s)
        member, place = self.role.value, self.place
        self.newest, self.settled, self._born_at_s = number, True, self.clock()
        self.current = Generation(
            number,
            lambda store: open_pair(store, member, backend, place.to_build_at(peer_host)),
            store,
            self.limits,
            self.doorbell,
        )
