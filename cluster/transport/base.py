"""The transport contract: links that carry frames, and nothing about what frames mean.

A link is the same thing seen from both ends. Links never block: `send` queues what the kernel
does not take, `receive` returns what has arrived. One thread owns all links of a process and waits
for them in a `Poller`. Liveness (pings, end of file) is built once above this contract
(`cluster.transport.liveness`), and every transport is held to it by `tests/contract`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from cluster.deadline import Deadline
from cluster.metrics import Metrics
from cluster.wire import Frame


class Link(ABC):
    """One end of a long-lived, ordered, bidirectional connection between a rank and a shard."""

    peer: str
    """Who is at the other end, for messages: ``shard 3 at unix:/…``."""

    @abstractmethod
    def send(self, frame: Frame) -> None:
        """Queue `frame`; never blocks.

        Its tensors are sent from where they lie and must not be written any more.
        Raises `LinkLostError` when the link is gone or the peer has stopped reading (bounded
        outgoing queue), `FrameTooLargeError` before anything is sent when it is over the bound.
        """

    @abstractmethod
    def receive(self) -> Frame | None:
        """Return the next whole frame, or None when none has arrived.

        Also moves queued outgoing bytes forward. Raises `LinkLostError` at end of file or reset,
        and a `WireError` for a frame that cannot be decoded: the link stays usable afterwards
        unless the frame's length itself cannot be trusted. Rows of the frame alias memory that
        is the frame's alone: they stay as they are for as long as somebody holds them.
        """

    @abstractmethod
    def fileno(self) -> int:
        """Return a descriptor that is readable when `receive` may return a frame, or -1.

        The same number until `close`.
        """

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether `receive` has something to do right now, without waiting on `fileno`."""

    @property
    def wants_write(self) -> bool:
        """Whether outgoing bytes wait for the descriptor to become writable."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Close this end; idempotent. The peer sees end of file."""


class Listener(ABC):
    """A shard's end: accepts links."""

    address: str
    """What ranks connect to: ``grpc://host:port``, ``unix:/path`` or ``inproc:name``."""

    @abstractmethod
    def accept(self) -> Link | None:
        """Return the next new link, or None; never blocks."""

    @abstractmethod
    def fileno(self) -> int:
        """Return a descriptor that is readable when `accept` may return a link, or -1."""

    @abstractmethod
    def close(self) -> None:
        """Stop accepting and remove what was created (socket files); idempotent."""


class Transport(ABC):
    """A way to make links. Registered by URL scheme in `cluster.transport`."""

    scheme: str
    metrics: Metrics | None = None
    """Where links made by `connect` count what they do, when somebody wants to know."""

    @abstractmethod
    def connect(self, address: str, deadline: Deadline) -> Link:
        """Connect to a listener. Raises `LinkLostError`; blocks until `deadline` at most."""

    @abstractmethod
    def listen(self, bind: str) -> Listener:
        """Listen on `bind` (the scheme's own form). Raises OSError with the address in it."""
