"""One generation of a group at one end: built, tried, waited for and closed by its own thread.

The link's owner starts exchanges and takes what has come; the thread waits, so that the owner never
does. The thread never outlives its waits: each has a limit, and the group is closed after the last.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Thread
from typing import Final, NamedTuple

import torch
from torch import Tensor

from cluster.transport.collective.limits import Limits
from cluster.transport.collective.pairs import Exchange, LaneStore, Pair
from cluster.transport.mailbox import Doorbell

logger = logging.getLogger(__name__)

_LINGER_S: Final = 5.0
_PROBE: Final = 0


class Expected(NamedTuple):
    """Rows that are to come."""

    sequence: int
    rows_B: Tensor
    exchange: Exchange
    limit_s: float


Build = Callable[[LaneStore], Pair]


class Generation:
    """The owner's thread calls all methods; `built` and `failed` are written by the other."""

    def __init__(
        self, number: int, build: Build, store: LaneStore, limits: Limits, doorbell: Doorbell
    ) -> None:
        self.number = number
        self.built = False
        """This end has been built and tried."""
        self.announced = False
        """The other end has been told so."""
        self.peer_max_bytes = 0
        """The largest frame that the other end takes; 0 until it has said that it is ready."""
        self.failed = ""
        self.store = store
        self.num_received = 0
        self.num_sent = 0
        self._build = build
        self._limits = limits
        self._doorbell = doorbell
        self._pair: Pair | None = None
        self._expected: SimpleQueue[Expected | None] = SimpleQueue()
        self._arrived: deque[tuple[int, Tensor]] = deque()
        self._sends: deque[tuple[int, Exchange]] = deque()
        self._released = Event()
        self._linger = False
        Thread(target=self._run, name=f"collective-{number}", daemon=True).start()

    @property
    def usable(self) -> bool:
        """Whether both ends have confirmed and nothing has failed."""
        return self.announced and self.peer_max_bytes > 0 and not self.failed

    def send(self, rows_B: Tensor) -> int:
        """Start sending; return the exchange's number. Raises RuntimeError for a broken group."""
        assert self._pair is not None
        exchange = self._pair.send(rows_B.to(self._pair.device), self.num_sent + 1)
        self.num_sent += 1
        self._sends.append((self.num_sent, exchange))
        return self.num_sent

    def received_by_peer(self, count: int) -> None:
        """Forget sends that have been received."""
        while self._sends and self._sends[0][0] <= count:
            self._sends.popleft()

    def expect(self, sequence: int, num_bytes: int) -> None:
        """Start receiving. Raises RuntimeError for a broken group."""
        assert self._pair is not None
        rows_B = torch.empty(num_bytes, dtype=torch.uint8, device=self._pair.device)
        exchange = self._pair.receive(rows_B, sequence)
        limit_s = self._limits.exchange_limit_s(num_bytes)
        self._expected.put(Expected(sequence, rows_B, exchange, limit_s))

    def arrivals(self) -> list[tuple[int, Tensor]]:
        """Return exchanges that have come, in order."""
        return [self._arrived.popleft() for _ in range(len(self._arrived))]

    def release(self, linger: bool = False) -> None:
        """Give the group up; with `linger`, once what was sent has been received. Idempotent."""
        self._linger = linger
        self.store.close()
        self._released.set()
        self._expected.put(None)

    def _run(self) -> None:
        try:
            self._pair = self._build(self.store)
            self._try(self._pair)
            self.built = True
            self._doorbell.ring()
            self._wait_for_rows()
        except Exception as error:  # border: what a backend raises is not one family
            self.failed = str(error).partition("\n")[0] or type(error).__name__
            logger.debug("generation %d: %s", self.number, self.failed)
            self._doorbell.ring()
        # The owner may still be starting exchanges.
        self._released.wait()
        self._close()

    def _try(self, pair: Pair) -> None:
        """Exchange the generation's number, so that the first rows meet a group that works."""
        sent = torch.tensor([self.number], dtype=torch.int64, device=pair.device)
        came = torch.zeros_like(sent)
        sending = pair.send(sent.view(torch.uint8), _PROBE)
        pair.receive(came.view(torch.uint8), _PROBE).wait(self._limits.build_s)
        sending.wait(self._limits.build_s)
        if int(came) != self.number:
            raise RuntimeError(f"the other member is of generation {int(came)}")

    def _wait_for_rows(self) -> None:
        while (item := self._expected.get()) is not None:
            item.exchange.wait(item.limit_s)
            self._arrived.append((item.sequence, item.rows_B))
            self._doorbell.ring()

    def _close(self) -> None:
        ends_s = time.monotonic() + _LINGER_S
        while self._linger and not self.failed and self._sends:
            with contextlib.suppress(RuntimeError):
                self._sends[0][1].wait(max(0.0, ends_s - time.monotonic()))
            self._sends.popleft()
        self._sends.clear()
        if self._pair is not None:
            self._pair.close()
            self._pair = None
