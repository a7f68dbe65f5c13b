"""A rank's links to the shards that the placement names: opened, watched, lost, opened again.

Owned by the engine thread. Connections are made by an executor, so that a silent address never
holds up a step; a finished connection is picked up at the next wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import numpy as np

from cluster.deadline import Deadline
from cluster.errors import LinkLostError, ShardFailedError, TrinityError
from cluster.placement import Placement, ShardInfo
from cluster.transport.base import Link
from cluster.transport.liveness import LinkMonitor
from cluster.transport.poller import Poller
from cluster.transport.session import Session
from cluster.wire import Busy, Frame, Ping, Pong, Refused
from router.config import DispatchConfig
from router.copies import Copies, ShardKey, key_of
from router.plan import Int32

Connect = Callable[[ShardInfo, Deadline], Session]
OnLost = Callable[[ShardInfo, str], None]


@dataclass
class _Peer:
    """One shard of the placement: connected, connecting, or waiting to be tried again."""

    info: ShardInfo
    session: Session | None = None
    monitor: LinkMonitor | None = None
    pending: Future[Session] | None = None
    retry_at_s: float = 0.0
    last_problem: str = "not connected yet"


@dataclass
class ShardLinks:
    """Sessions by shard, under the newest placement.

    The loss of a shard reaches the dispatcher as an error from `wait`, once.
    """

    connect: Connect
    executor: Executor
    config: DispatchConfig
    on_lost: OnLost = lambda shard, reason: None
    clock: Callable[[], float] = time.monotonic
    poller: Poller = field(default_factory=Poller)
    placement: Placement | None = None
    copies: Copies = field(init=False)
    """Which of an expert's copies is asked."""
    _peers: dict[ShardKey, _Peer] = field(default_factory=dict)
    _key_of_link: dict[Link, ShardKey] = field(default_factory=dict)
    _lost: list[tuple[ShardKey, TrinityError]] = field(default_factory=list)
    _ended: dict[ShardKey, bool] = field(default_factory=dict)
    """Lives whose stream has ended and that were not reached since; whether they are gone."""

    def __post_init__(self) -> None:
        self.copies = Copies(self.alive)

    def apply(self, placement: Placement) -> None:
        """Take a newer placement: keep links it still names, open what is new, close the rest.

        A dropped shard shows up as lost in the next `wait`, so that rows still in flight there are
        asked for elsewhere. A placement that is not newer is ignored.
        """
        if self.placement is not None and placement.version <= self.placement.version:
            return
        named = {key_of(shard): shard for shard in placement.shards}
        for key in [key for key in self._peers if key not in named]:
            self._lost.append((key, LinkLostError(f"shard {key[0]}", "left the placement")))
            self._drop(key)
            if key in self._ended:
                self._ended[key] = True
        for key, shard in named.items():
            if key not in self._peers:
                self._peers[key] = _Peer(shard)
        self.placement = placement
        self.copies.apply(placement)
        self._tend(self.clock())

    def owners(self, moe_layer: int) -> Int32:
        """Return (E,) the position of the copy of each expert to ask, -1 where none lives."""
        return self.copies.first(moe_layer)

    def not_held(self, key: ShardKey, moe_layer: int, expert_ids_G: Int32, reason: str) -> None:
        """Ask a shard for these experts no more; its link stays, and the pool is told.

        Until the next placement, or until `reconnect_every_s` is over: the only copy has to be
        asked again. Ignored for a shard that the placement does not name.
        """
        peer = self._peers.get(key)
        if peer is None:
            return
        until_s = self.clock() + self.config.reconnect_every_s
        self.copies.absent(key, moe_layer, expert_ids_G, until_s)
        self.on_lost(peer.info, reason)

    def stream_ended(self, key: ShardKey) -> bool:
        """Whether this life's stream ended (not: fell silent) and it was not reached since."""
        return key in self._ended

    def gone(self, key: ShardKey) -> bool:
        """Whether a life whose stream ended was then looked for and not found."""
        return self._ended.get(key, False)

    def alive(self, key: ShardKey) -> bool:
        """Whether there is a link to this life of the shard."""
        peer = self._peers.get(key)
        return peer is not None and peer.session is not None

    def send(self, shard_idx: int, frame: Frame) -> ShardKey:
        """Send to the shard at this position of the placement; return its key.

        A shard that is gone, or goes now, shows up as an error of the next `wait`.
        """
        assert self.placement is not None
        key = key_of(self.placement.shards[shard_idx])
        peer = self._peers[key]
        if peer.session is None:
            self._lost.append((key, LinkLostError(f"shard {key[0]}", peer.last_problem)))
            return key
        try:
            peer.session.link.send(frame)
        except LinkLostError as error:
            self.give_up(key, error)
        return key

    def wait(self, timeout_s: float) -> list[tuple[ShardKey, Frame | TrinityError]]:
        """Return frames and losses; pings are handled here.

        Blocks for `timeout_s`, and for the time between two pings, at most: a wait that is longer
        would look to the monitors like time in which nobody listened.
        """
        if self._lost:
            lost, self._lost = self._lost, []
            return list(lost)
        items: list[tuple[ShardKey, Frame | TrinityError]] = []
        arrivals = self.poller.wait(min(timeout_s, self.config.ping_every_s))
        now_s = self.clock()
        for link, item in arrivals:
            key = self._key_of_link.get(link)
            if key is None:
                continue
            monitor = self._peers[key].monitor
            assert monitor is not None
            if isinstance(item, TrinityError):
                if isinstance(item, LinkLostError):
                    self._ended[key] = False
                # Also a frame that cannot be decoded: whose rows it held is unknown.
                self.give_up(key, item)
                continue
            if isinstance(item, Refused):
                # The shard could not read a frame of ours: whose rows it asked for is unknown.
                problem = f"{item.code}: {item.message}"
                self.give_up(key, ShardFailedError(key[0], problem))
                continue
            monitor.heard(item, now_s)
            if not isinstance(item, Pong | Ping | Busy):
                items.append((key, item))
        self._tend(now_s)
        items.extend(self._lost)
        self._lost = []
        return items

    def wake(self) -> None:
        """End a `wait` early; thread-safe."""
        self.poller.wake()

    def give_up(self, key: ShardKey, error: TrinityError) -> None:
        """Close the link and count the shard as dead until it is reached again."""
        peer = self._peers.get(key)
        if peer is None or peer.session is None:
            return
        self._disconnect(peer)
        peer.last_problem = str(error)
        peer.retry_at_s = self.clock() + self.config.reconnect_every_s
        self._lost.append((key, error))
        self.on_lost(peer.info, str(error))

    def covered(self) -> bool:
        """Whether every (layer, expert) of the placement has a living copy. Thread-safe."""
        placement = self.placement
        if placement is None:
            return False
        # The last entry, which position -1 reads, is never alive.
        alive_S = np.array([self.alive(key_of(shard)) for shard in placement.shards] + [False])
        return bool(alive_S[placement.copies_LEC].any(axis=-1).all())

    def missing(self) -> list[str]:
        """Return why shards of the placement cannot be reached now, one line each. Thread-safe."""
        return [
            f"shard {peer.info.shard_id} at {peer.info.address}: {peer.last_problem}"
            for peer in list(self._peers.values())
            if peer.session is None
        ]

    def close(self) -> None:
        """Close every link."""
        for key in list(self._peers):
            self._drop(key)
        self.poller.close()

    def _tend(self, now_s: float) -> None:
        """Pings that are due, peers that are silent, connections made or to be made."""
        self.copies.tend(now_s)
        for key, peer in self._peers.items():
            if peer.session is not None:
                self._watch(key, peer, now_s)
            elif peer.pending is None and now_s >= peer.retry_at_s:
                self._start_connecting(peer)
            if peer.pending is not None and peer.pending.done():
                self._finish_connecting(key, peer, peer.pending, now_s)

    def _watch(self, key: ShardKey, peer: _Peer, now_s: float) -> None:
        assert peer.session is not None
        assert peer.monitor is not None
        try:
            ping = peer.monitor.poll(now_s)
            if ping is not None:
                peer.session.link.send(ping)
        except LinkLostError as error:
            self.give_up(key, error)

    def _start_connecting(self, peer: _Peer) -> None:
        deadline = Deadline.after(self.config.connect_timeout_s)
        peer.pending = self.executor.submit(self.connect, peer.info, deadline)
        peer.pending.add_done_callback(lambda _: self.poller.wake())

    def _finish_connecting(
        self, key: ShardKey, peer: _Peer, pending: Future[Session], now_s: float
    ) -> None:
        peer.pending = None
        try:
            peer.session = _session_with(peer.info, pending.result())
        except TrinityError as error:
            peer.last_problem = str(error)
            peer.retry_at_s = now_s + self.config.reconnect_every_s
            if key in self._ended:
                self._ended[key] = True
            return
        self._ended.pop(key, None)
        peer.monitor = LinkMonitor(
            now_s,
            peer.session.link.peer,
            self.config.ping_every_s,
            self.config.dead_after_s,
        )
        self._key_of_link[peer.session.link] = key
        self.poller.add(peer.session.link)
        self.copies.changed()

    def _disconnect(self, peer: _Peer) -> None:
        if peer.session is not None:
            self.poller.remove(peer.session.link)
            self._key_of_link.pop(peer.session.link, None)
            peer.session.link.close()
            peer.session = peer.monitor = None
            self.copies.changed()

    def _drop(self, key: ShardKey) -> None:
        peer = self._peers.pop(key)
        self._disconnect(peer)
        if peer.pending is not None:
            peer.pending.add_done_callback(_close_session)


def _session_with(shard: ShardInfo, session: Session) -> Session:
    """Return the session when it is with this life of this shard; else close it and raise."""
    found = (session.welcome.shard_id, session.welcome.incarnation)
    if found == key_of(shard):
        return session
    session.link.close()
    answering = "shard {}, life {}".format(*found)
    raise LinkLostError(
        f"shard {shard.shard_id}, life {shard.incarnation}", f"{shard.address} is {answering} now"
    )


def _close_session(pending: Future[Session]) -> None:
    if not pending.cancelled() and pending.exception() is None:
        pending.result().link.close()
