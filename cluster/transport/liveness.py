"""When a silent peer counts as dead: the same rule for every transport.

Pure: time is passed in. The asking side sends a `Ping` every `ping_every_s`; the peer's compute
loop answers with a `Pong`. Any frame is a sign of life. A `Busy` says for how long the peer's loop
will be silent, so that busy is not taken for dead.
"""

from __future__ import annotations

from cluster.errors import LinkLostError
from cluster.wire import Busy, Frame, Ping

PING_EVERY_S = 0.25
DEAD_AFTER_S = 1.2


class LinkMonitor:
    """Watches one link from one end; owned by the thread that owns the link.

    The owner passes every frame to `heard` before it calls `poll`. An owner that was away itself
    (its last `poll` is long ago) gives the peer a fresh `dead_after_s`: what the peer sent
    meanwhile may not have been read yet.
    """

    def __init__(
        self,
        now_s: float,
        peer: str = "peer",
        ping_every_s: float = PING_EVERY_S,
        dead_after_s: float = DEAD_AFTER_S,
    ) -> None:
        self._peer = peer
        self._ping_every_s = ping_every_s
        self._dead_after_s = dead_after_s
        self._last_poll_s = now_s
        self._next_ping_s = now_s
        self._alive_until_s = now_s + dead_after_s
        self._nonce = 0

    def heard(self, frame: Frame, now_s: float) -> None:
        """Take note of a frame from the peer."""
        grace_s = frame.for_us / 1e6 if isinstance(frame, Busy) else 0.0
        # Frames come in order: whatever follows a `Busy` says that the busy time is over.
        self._alive_until_s = now_s + self._dead_after_s + grace_s

    def poll(self, now_s: float) -> Ping | None:
        """Return a ping when one is due. Raises `LinkLostError` for a peer silent too long."""
        # Twice: an owner that waits for frames wakes a little after each whole interval, and would
        # otherwise be taken for away each time, and its peer for alive for ever. So no owner may
        # wait for longer than `ping_every_s` at a time.
        if now_s - self._last_poll_s > 2 * self._ping_every_s:
            self._alive_until_s = max(self._alive_until_s, now_s + self._dead_after_s)
        self._last_poll_s = now_s
        if now_s > self._alive_until_s:
            raise LinkLostError(self._peer, f"silent for {self._dead_after_s:g} s")
        if now_s < self._next_ping_s:
            return None
        self._next_ping_s = now_s + self._ping_every_s
        self._nonce += 1
        return Ping(self._nonce)
