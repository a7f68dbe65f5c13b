"""SIGINT and SIGTERM as a flag, for commands that serve until they are told to end."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

POLL_S = 0.1


class Stop:
    """Whether to stop.

    A plain flag: `threading.Event` deadlocks when a second signal comes while its handler holds the
    event's lock.
    """

    def __init__(self) -> None:
        self.is_set = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        self.is_set = True

    def wait(self) -> None:
        """Return soon after a signal; blocks until then."""
        while not self.is_set:
            time.sleep(POLL_S)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a flag for the time of the block."""
    stop = Stop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, stop.handle) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
