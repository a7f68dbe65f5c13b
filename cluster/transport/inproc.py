"""Links inside one process and one thread: frames go by reference, nothing is encoded.

The shard's loop has no thread of its own: the rank's end runs it (`pump`) when it looks for a frame
and none is there. Rows already are in compute dtype, as they would be on a wire.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from cluster.deadline import Deadline
from cluster.errors import LinkLostError
from cluster.transport.base import Link, Listener, Transport
from cluster.wire import Frame

Pump = Callable[[], None]


class InprocLink(Link):
    """One end of a pair."""

    def __init__(self, peer: str, pump: Pump | None) -> None:
        self.peer = peer
        self._pump = pump
        self._inbox: deque[Frame] = deque()
        self._other: InprocLink | None = None

    def join(self, other: InprocLink) -> None:
        """Make `other` the far end."""
        self._other = other

    def send(self, frame: Frame) -> None:
        """Put `frame` into the far end's inbox."""
        if self._other is None:
            raise LinkLostError(self.peer, "closed")
        self._other._inbox.append(frame)

    def receive(self) -> Frame | None:
        """Return the next frame, letting the shard work when there is none."""
        if not self._inbox:
            self._run_peer()
        if self._inbox:
            return self._inbox.popleft()
        if self._other is None:
            raise LinkLostError(self.peer, "closed")
        return None

    def _run_peer(self) -> None:
        # The shard's loop must not run inside itself.
        if self._pump is not None and self._other is not None and self._other._inbox:
            self._pump()

    def fileno(self) -> int:
        """No descriptor: see `ready`."""
        return -1

    @property
    def ready(self) -> bool:
        """Whether a frame is here, or the shard has one to work on, or the far end is gone."""
        other = self._other
        if self._inbox or other is None:
            return True
        return self._pump is not None and bool(other._inbox)

    def close(self) -> None:
        """Close both ends."""
        other, self._other = self._other, None
        if other is not None:
            other._other = None


class InprocListener(Listener):
    """A shard's end; `pump` runs its loop once without waiting."""

    def __init__(self, address: str, registry: dict[str, InprocListener]) -> None:
        self.address = address
        self.pump: Pump = lambda: None
        self._registry = registry
        self._new: deque[InprocLink] = deque()

    def run_loop(self) -> None:
        """Let the shard work; `pump` may be set after ranks have connected."""
        self.pump()

    def offer(self, link: InprocLink) -> None:
        """Hand a new link to the next `accept`."""
        self._new.append(link)

    def accept(self) -> InprocLink | None:
        """Return the next new link, or None."""
        return self._new.popleft() if self._new else None

    def fileno(self) -> int:
        """No descriptor."""
        return -1

    def close(self) -> None:
        """Stop accepting."""
        self._registry.pop(self.address, None)


class InprocTransport(Transport):
    """Listeners by name within one registry; `inline` mode owns one."""

    scheme = "inproc"

    def __init__(self) -> None:
        self._listeners: dict[str, InprocListener] = {}

    def listen(self, bind: str) -> InprocListener:
        """Listen under a name (``inproc:name``). Raises OSError when it is taken."""
        if bind in self._listeners:
            raise OSError(f"{bind} is already listening in this process")
        self._listeners[bind] = InprocListener(bind, self._listeners)
        return self._listeners[bind]

    def connect(self, address: str, deadline: Deadline) -> InprocLink:
        """Connect to a listener of this registry. Raises `LinkLostError`."""
        listener = self._listeners.get(address)
        if listener is None:
            raise LinkLostError(address, "no such listener in this process")
        ours = InprocLink(f"shard at {address}", listener.run_loop)
        theirs = InprocLink("rank in this process", None)
        ours.join(theirs)
        theirs.join(ours)
        listener.offer(theirs)
        return ours
