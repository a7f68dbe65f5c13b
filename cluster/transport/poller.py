"""Waits for links and listeners together: the one place where a process's link thread blocks."""

from __future__ import annotations

import os
import select

from cluster.errors import LinkLostError, TrinityError, WireError
from cluster.transport.base import Link, Listener
from cluster.wire import Frame

Arrival = tuple[Link, Frame | TrinityError]


class Poller:
    """Epoll over links, listeners and a wake-up. One thread owns it; only `wake` is for others.

    Links without a descriptor (`fileno` -1) are asked through `ready` at each wait.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._links: dict[Link, int] = {}
        self._listeners: dict[int, Listener] = {}
        self._by_fd: dict[int, Link] = {}
        self._closed = False

    def add(self, link: Link) -> None:
        """Watch a link."""
        fd = link.fileno()
        self._links[link] = select.EPOLLIN
        if fd >= 0:
            self._by_fd[fd] = link
            self._epoll.register(fd, select.EPOLLIN)

    def remove(self, link: Link) -> None:
        """Stop watching; before the link is closed. No error when it is not watched."""
        if self._links.pop(link, None) is None:
            return
        fd = link.fileno()
        if self._by_fd.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def add_listener(self, listener: Listener) -> None:
        """Accept and watch the links that come to `listener`; each is announced by its first frame."""
        if listener.fileno() >= 0:
            self._epoll.register(listener.fileno(), select.EPOLLIN)
        self._listeners[listener.fileno()] = listener

    def wake(self) -> None:
        """End the wait that is under way, or else the next one. Thread-safe."""
        os.eventfd_write(self._wake_fd, 1)

    def wait(self, timeout_s: float) -> list[Arrival]:
        """Return frames and errors that have arrived, blocking up to `timeout_s` for the first.

        A link whose peer is gone gives its `LinkLostError` once and is watched no more.
        """
        arrivals = self._drain_ready()
        if arrivals:
            return arrivals
        for fd, _ in self._epoll.poll(timeout_s):
            if fd == self._wake_fd:
                os.eventfd_read(self._wake_fd)
            elif fd in self._by_fd:
                self._drain(self._by_fd[fd], arrivals)
            elif fd in self._listeners:
                self._accept(self._listeners[fd])
        self._follow_writes()
        return arrivals or self._drain_ready()

    def close(self) -> None:
        """Free the descriptors; links and listeners stay their owners'. Idempotent."""
        if not self._closed:
            self._closed = True
            self._epoll.close()
            os.close(self._wake_fd)

    def _drain_ready(self) -> list[Arrival]:
        arrivals: list[Arrival] = []
        for fd, listener in self._listeners.items():
            if fd < 0:
                self._accept(listener)
        for link in [link for link in self._links if link.ready]:
            self._drain(link, arrivals)
        return arrivals

    def _drain(self, link: Link, arrivals: list[Arrival]) -> None:
        while link in self._links:
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
        for link, watched in self._links.items():
            wanted = select.EPOLLIN | (select.EPOLLOUT if link.wants_write else 0)
            if wanted != watched and link.fileno() >= 0:
                self._epoll.modify(link.fileno(), wanted)
                self._links[link] = wanted
