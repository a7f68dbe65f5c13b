"""A link whose large rows go by a group while there is one; see the package for the rules."""

from __future__ import annotations

import contextlib
import select
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from cluster.errors import LinkLostError, MalformedFrameError, WireError
from cluster.metrics import Metric, Metrics
from cluster.transport.base import Link
from cluster.transport.collective.generation import Generation
from cluster.transport.collective.limits import Limits
from cluster.transport.collective.negotiation import Negotiation, Place, Role
from cluster.transport.mailbox import Doorbell
from cluster.wire import (
    ExpertCall,
    ExpertReply,
    Frame,
    GroupNote,
    GroupVerb,
    Parcel,
    ParcelRows,
    Welcome,
    decode_apart,
    encode_apart,
)
from cluster.wire.decode import check_frame_size


class _Kept(NamedTuple):
    """Rows that were sent by the group and may have to be sent again."""

    generation: int
    sequence: int
    rows_B: Tensor


@dataclass(slots=True, eq=False)
class _Slot:
    """A frame, in the order of the base; without `item` while its rows are away."""

    item: Frame | WireError | None
    parcel: Parcel | None = None


class CollectiveLink(Link):
    """One end. Owned by one thread, as every link; the group's thread only rings the doorbell."""

    def __init__(
        self,
        base: Link,
        role: Role,
        place: Place,
        limits: Limits,
        max_frame_bytes: int,
        metrics: Metrics | None = None,
    ) -> None:
        self.peer = base.peer
        self.metrics = metrics or Metrics()
        self._base = base
        self._max_frame_bytes = max_frame_bytes
        self._ack_bytes = min(2**20, max_frame_bytes // 4)
        self._doorbell = Doorbell()
        self._groups = Negotiation(
            role, place, limits, max_frame_bytes, self._say, self._doorbell, self.metrics
        )
        self._slots: deque[_Slot] = deque()
        self._kept: deque[_Kept] = deque()
        self._kept_bytes = 0
        self._unacknowledged_bytes = 0
        self._lost: LinkLostError | None = None
        """The base has ended, and everything that came over it has been read."""
        self._broken: LinkLostError | None = None
        """A note could not be sent; what has arrived is still worth reading."""
        self._epoll = select.epoll()
        self._epoll.register(self._doorbell.fileno(), select.EPOLLIN)
        self._base_events = select.EPOLLIN
        self._epoll.register(base.fileno(), self._base_events)

    @property
    def generation(self) -> int:
        """Number of the generation in use, 0 while rows go over the base."""
        now = self._groups.current
        return now.number if now is not None and now.usable else 0

    def send(self, frame: Frame) -> None:
        """See `Link.send`. Rows that are not acknowledged count as waiting for the reader."""
        if self._epoll.closed:
            raise LinkLostError(self.peer, "closed")
        if (error := self._lost or self._broken) is not None:
            raise error
        try:
            if not self._send_apart(frame):
                self._base.send(frame)
            if isinstance(frame, Welcome):
                self._groups.welcomed = True
            self._groups.turn()
        finally:
            self._follow_base()

    def _send_apart(self, frame: Frame) -> bool:
        now = self._groups.current
        if now is None or not now.usable or not isinstance(frame, ExpertCall | ExpertReply):
            return False
        rows = frame.hidden_TD if isinstance(frame, ExpertCall) else frame.rows_ND
        if rows.nbytes < max(1, self._groups.least_rows_bytes):
            return False
        head, rows_B = encode_apart(frame)
        size = len(head) + len(rows_B)
        check_frame_size(size, self._max_frame_bytes)
        if size > now.peer_max_bytes:
            # The base knows how to have it refused.
            return False
        if self._kept and self._kept_bytes + len(rows_B) > 2 * self._max_frame_bytes:
            raise LinkLostError(self.peer, f"stopped reading; {self._kept_bytes} bytes wait")
        try:
            sequence = now.send(rows_B)
        except RuntimeError as error:
            self._groups.end(str(error).partition("\n")[0])
            return False
        self._kept.append(_Kept(now.number, sequence, rows_B))
        self._kept_bytes += len(rows_B)
        self._base.send(Parcel(now.number, sequence, now.num_received, len(rows_B), head))
        self._unacknowledged_bytes = 0
        self.metrics.inc(Metric.COLLECTIVE_FRAMES)
        return True

    def receive(self) -> Frame | None:
        """See `Link.receive`."""
        if self._epoll.closed:
            raise LinkLostError(self.peer, "closed")
        self._doorbell.quiet()
        try:
            self._look_at_group()
            while not (self._slots and self._slots[0].item is not None):
                if self._lost is not None or not self._read():
                    break
        except LinkLostError as error:
            self._base_lost(error)
        finally:
            self._follow_base()
        return self._next()

    def _read(self) -> bool:
        """Take one frame of the base; whether there was one."""
        try:
            frame = self._base.receive()
        except WireError as error:
            self._slots.append(_Slot(error))
            return True
        if frame is None:
            return False
        self._take(frame)
        return True

    def _say(self, note: Frame) -> None:
        try:
            self._base.send(note)
        except LinkLostError as error:
            self._broken = error

    def _next(self) -> Frame | None:
        if self._slots and (item := self._slots[0].item) is not None:
            self._slots.popleft()
            if isinstance(item, WireError):
                raise item
            return item
        error = self._lost or self._broken
        if error is not None and not self._rows_may_come():
            raise error
        return None

    def _rows_may_come(self) -> bool:
        """Whether the next frame waits for the group, which needs no base for that."""
        parcel = self._slots[0].parcel if self._slots else None
        now = self._groups.current
        return parcel is not None and now is not None and parcel.generation == now.number

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, GroupNote):
            self._take_note(frame)
        elif isinstance(frame, Parcel):
            self._take_parcel(frame)
        elif isinstance(frame, ParcelRows):
            self._take_rows(frame.generation, frame.sequence, frame.rows_B)
        else:
            if isinstance(frame, Welcome):
                self._groups.welcomed = True
            self._slots.append(_Slot(frame))
        if self._broken is None:
            self._groups.turn()

    def _take_note(self, note: GroupNote) -> None:
        if note.verb is GroupVerb.ACK:
            self._acknowledged(note.generation, note.number)
        elif note.verb is not GroupVerb.DROP:
            self._groups.take(note)
        elif note.generation == self._groups.newest:
            self._groups.end("the other end dropped it: " + note.text)
            self._groups.settled = True
            self._acknowledged(note.generation, note.number)
            self._send_again()

    def _take_parcel(self, parcel: Parcel) -> None:
        if parcel.generation > self._groups.newest or not self._groups.welcomed:
            raise MalformedFrameError(f"rows by group {parcel.generation}, which is not known here")
        check_frame_size(len(parcel.head) + parcel.rows_bytes, self._max_frame_bytes)
        self._acknowledged(parcel.generation, parcel.num_received)
        self._slots.append(_Slot(None, parcel))
        now = self._groups.current
        if now is not None and now.number == parcel.generation:
            try:
                now.expect(parcel.sequence, parcel.rows_bytes)
            except RuntimeError as error:
                self._groups.end(str(error).partition("\n")[0])

    def _look_at_group(self) -> None:
        """Take what has come by the group; drop it when it failed."""
        now = self._groups.current
        if now is not None:
            for sequence, rows_B in now.arrivals():
                if self._groups.current is now and self._take_rows(now.number, sequence, rows_B):
                    now.num_received = sequence
                    self._acknowledge(now, len(rows_B))
            if now.failed and self._groups.current is now:
                self._groups.end(now.failed)
        if self._lost is None and self._broken is None:
            self._groups.turn()

    def _take_rows(self, generation: int, sequence: int, rows_B: Tensor) -> bool:
        """Put rows to the head that waits for them; whether they were accepted."""
        for slot in self._slots:
            parcel = slot.parcel
            if parcel is None or (parcel.generation, parcel.sequence) != (generation, sequence):
                continue
            try:
                slot.item = decode_apart(parcel.head, rows_B, self._max_frame_bytes)
            except WireError as error:
                now = self._groups.current
                if now is not None and now.number == generation:
                    self._groups.end(str(error))
                    return False
                slot.item = error
            slot.parcel = None
            return True
        return False

    def _acknowledge(self, now: Generation, num_bytes: int) -> None:
        self._unacknowledged_bytes += num_bytes
        if self._unacknowledged_bytes >= self._ack_bytes and self._lost is None:
            self._unacknowledged_bytes = 0
            self._say(GroupNote(GroupVerb.ACK, now.number, now.num_received))

    def _acknowledged(self, generation: int, count: int) -> None:
        now = self._groups.current
        if now is not None and now.number == generation:
            now.received_by_peer(count)
        while self._kept and self._kept[0][:2] <= (generation, count):
            self._kept_bytes -= len(self._kept.popleft().rows_B)

    def _send_again(self) -> None:
        """Send what the other end has not received, over the base."""
        while self._kept:
            kept = self._kept.popleft()
            self._kept_bytes -= len(kept.rows_B)
            self._say(ParcelRows(kept.generation, kept.sequence, kept.rows_B))
            self.metrics.inc(Metric.COLLECTIVE_RESENT)

    def _base_lost(self, error: LinkLostError) -> None:
        """No more comes over the base; rows whose heads are here may still come by the group."""
        if self._lost is None:
            self._lost = error
            with contextlib.suppress(OSError):
                self._epoll.unregister(self._base.fileno())

    def _follow_base(self) -> None:
        """Wait for the base to become writable while it has bytes to write."""
        if self._epoll.closed or self._lost is not None:
            return
        events = select.EPOLLIN | (select.EPOLLOUT * self._base.wants_write)
        if events != self._base_events:
            self._base_events = events
            self._epoll.modify(self._base.fileno(), events)

    def fileno(self) -> int:
        """An epoll's, over the base and the doorbell."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    @property
    def ready(self) -> bool:
        """Whether the next frame is here, or the base has one."""
        if self._slots and self._slots[0].item is not None:
            return True
        return self._lost is None and not self._epoll.closed and self._base.ready

    def close(self) -> None:
        """See `Link.close`. The group goes once the other end has what was sent by it."""
        if self._epoll.closed:
            return
        self._groups.close()
        self._epoll.close()
        self._base.close()
        self._doorbell.close()
        self._slots.clear()
        self._kept.clear()
