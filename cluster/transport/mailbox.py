"""Hand-over between a link's owner and the threads of a library that owns the connection."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Condition, Lock

_LOOK_AGAIN_S = 1.0


class Doorbell:
    """An eventfd that any thread may ring and the poller may wait for."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # Held while the descriptor is used: a late ring must not hit its next owner.
        self._lock = Lock()

    def fileno(self) -> int:
        """The descriptor, -1 once closed."""
        return self._fd

    def ring(self) -> None:
        """Make the descriptor readable."""
        with self._lock:
            if self._fd >= 0:
                os.eventfd_write(self._fd, 1)

    def quiet(self) -> None:
        """Make it unreadable; before looking for what the next ring announces."""
        try:
            os.eventfd_read(self._fd)
        except OSError:
            return

    def close(self) -> None:
        """Free the descriptor; idempotent."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


class Inbox:
    """Messages for the owner, in order, up to a bound of bytes that holds the sender back.

    `put` and `end` are called by the receiving thread, `take` and `close` by the owner.
    """

    def __init__(self, max_bytes: int) -> None:
        self.ended = ""
        """Why no more messages come; they may still be in here."""
        self._max_bytes = max_bytes
        self._messages: deque[bytes] = deque()
        self._num_bytes = 0
        self._room = Condition()
        self._closed = False
        self._doorbell = Doorbell()

    @property
    def empty(self) -> bool:
        """Whether nothing waits to be taken."""
        return not self._messages

    def fileno(self) -> int:
        """Readable when `take` may return a message or the end has come."""
        return self._doorbell.fileno()

    def put(self, message: bytes) -> bool:
        """Add a message, waiting for room; False when the owner has closed."""
        with self._room:
            while self._num_bytes > self._max_bytes and not self._closed:
                self._room.wait(_LOOK_AGAIN_S)
            if self._closed:
                return False
            self._num_bytes += len(message)
            self._messages.append(message)
        self._doorbell.ring()
        return True

    def take(self) -> bytes | None:
        """Return the next message, or None. Once ended, the descriptor stays readable."""
        if not self._messages:
            self._settle()
        if not self._messages:
            return None
        with self._room:
            message = self._messages.popleft()
            was_full = self._num_bytes > self._max_bytes
            self._num_bytes -= len(message)
            if was_full:
                self._room.notify()
        return message

    def _settle(self) -> None:
        """Nothing is here: be quiet, unless the end came meanwhile."""
        if not self.ended:
            self._doorbell.quiet()
        if self.ended:
            self._doorbell.ring()

    def end(self, reason: str) -> None:
        """No more messages come; the first reason counts."""
        self.ended = self.ended or reason
        self._doorbell.ring()

    def close(self) -> None:
        """The owner wants no more."""
        with self._room:
            self._closed = True
            self._messages.clear()
            self._room.notify()
        self._doorbell.close()


class Outbox:
    """Messages that a library's thread takes by iterating; `num_bytes` wait to be taken."""

    def __init__(self) -> None:
        self._messages: SimpleQueue[bytes | None] = SimpleQueue()
        # Each written by one thread only, so that no lock is needed.
        self._put_bytes = 0
        self._taken_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Bytes not yet taken."""
        return self._put_bytes - self._taken_bytes

    def put(self, message: bytes) -> None:
        """Add a message."""
        self._put_bytes += len(message)
        self._messages.put(message)

    def end(self) -> None:
        """End the iteration once what is in here has been taken; from any thread."""
        self._messages.put(None)

    def __iter__(self) -> Iterator[bytes]:
        while (message := self._messages.get()) is not None:
            yield message
            self._taken_bytes += len(message)
