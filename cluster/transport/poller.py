"""Waits for links and listeners together: the one place where a process's link thread blocks."""

from __future__ import annotations

import os
import select

from cluster.errors import LinkLostError, TrinityError, WireError
from cluster.transport.base import Link, Listener
from cluster.wire import Frame

Arrival = tuple[Link, Frame | TrinityError]

_FRAMES_PER_TURN = 64
"""A link that never runs dry must not keep the others from their turn."""
_FINE_WAIT_S = 0.002
"""Below this, epoll's grid of milliseconds is too coarse."""
_MAX_SELECT_FD = 1023


class Poller:
    """Epoll over links, listeners and a wake-up. One thread owns it; only `wake` is for others.

    Links and listeners without a descriptor (`fileno` -1) are asked at each wait.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        # Descriptors are noted when a link comes: a link closed by its owner has none any more.
        self._fd_of: dict[Link, int] = {}
        self._by_fd: dict[int, Link] = {}
        self._writing: set[int] = set()
        self._listeners: dict[int, Listener] = {}
        self._asked_listeners: list[Listener] = []
        self._closed = False

    @property
    def links(self) -> tuple[Link, ...]:
        """The links watched now, in the order they came."""
        return tuple(self._fd_of)

    def add(self, link: Link) -> None:
        """Watch a link."""
        fd = link.fileno()
        self._fd_of[link] = fd
        if fd >= 0:
            self._by_fd[fd] = link
            self._epoll.register(fd, select.EPOLLIN)

    def remove(self, link: Link) -> None:
        """Stop watching; before the link is closed. No error when it is not watched."""
        fd = self._fd_of.pop(link, -1)
        if self._by_fd.pop(fd, None) is not None:
            self._writing.discard(fd)
            # Closed all the same: the kernel has forgotten it, or the number is another's now.
            if link.fileno() == fd:
                self._epoll.unregister(fd)

    def add_listener(self, listener: Listener) -> None:
        """Accept and watch links that come to `listener`; a link shows up by its first frame."""
        fd = listener.fileno()
        if fd < 0:
            self._asked_listeners.append(listener)
            return
        self._listeners[fd] = listener
        self._epoll.register(fd, select.EPOLLIN)

    def wake(self) -> None:
        """End the wait that is under way, or else the next one. Thread-safe; idle once closed."""
        if self._closed:
            return
        os.eventfd_write(self._wake_fd, 1)

    def wait(self, timeout_s: float) -> list[Arrival]:
        """Return frames and errors that have arrived, blocking up to `timeout_s` for the first.

        A link whose peer is gone gives its `LinkLostError` once and is watched no more.
        """
        arrivals: list[Arrival] = []
        self._drain_ready(arrivals)
        if not arrivals:
            self._poll(timeout_s, arrivals)
        return arrivals

    def close(self) -> None:
        """Free the descriptors; links and listeners stay their owners'. Idempotent."""
        if not self._closed:
            self._closed = True
            self._epoll.close()
            os.close(self._wake_fd)

    def _poll(self, timeout_s: float, arrivals: list[Arrival]) -> None:
        if self._by_fd:
            self._follow_writes()
        for fd, _ in self._events(timeout_s):
            if fd in self._by_fd:
                self._drain(self._by_fd[fd], arrivals)
            elif fd in self._listeners:
                self._accept(self._listeners[fd])
            elif fd == self._wake_fd:
                os.eventfd_read(self._wake_fd)
        if not arrivals:
            self._drain_ready(arrivals)

    def _events(self, timeout_s: float) -> list[tuple[int, int]]:
        if 0 < timeout_s < _FINE_WAIT_S and self._epoll.fileno() <= _MAX_SELECT_FD:
            select.select((self._epoll,), (), (), timeout_s)
            timeout_s = 0
        return self._epoll.poll(timeout_s)

    def _drain_ready(self, arrivals: list[Arrival]) -> None:
        for listener in self._asked_listeners:
            self._accept(listener)
        for link in [link for link in self._fd_of if link.ready]:
            self._drain(link, arrivals)

    def _drain(self, link: Link, arrivals: list[Arrival]) -> None:
        for _ in range(_FRAMES_PER_TURN):
            try:
                frame = link.receive()
            except LinkLostError as error:
                self.remove(link)
                arrivals.append((link, error))
                return
            except WireError as error:
                arrivals.append((link, error))
                continue
            if frame is None:
                return
            arrivals.append((link, frame))

    def _accept(self, listener: Listener) -> None:
        while (link := listener.accept()) is not None:
            self.add(link)

    def _follow_writes(self) -> None:
        for fd, link in self._by_fd.items():
            if link.wants_write != (fd in self._writing):
                self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT * link.wants_write))
                self._writing ^= {fd}
