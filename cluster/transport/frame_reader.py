"""Cuts a byte stream into frames without copying them.

Bytes are received into chunks that are only ever filled, never reused: a decoded frame aliases its
chunk, and the chunk lives as long as the last frame in it. Frames start on the 8-byte grid.
"""

from __future__ import annotations

import socket

import numpy as np

from cluster.errors import FrameTooLargeError, LinkLostError, MalformedFrameError, WireError
from cluster.wire import PREAMBLE_BYTES, Frame, decode
from cluster.wire.decode import check_frame_size, frame_bytes

_CHUNK_BYTES = 2**18
_LEAST_ROOM_BYTES = 2**12
_SKIP_BYTES = 2**16
_UNKNOWN = 0


class FrameReader:
    """The receiving half of one stream socket (non-blocking)."""

    def __init__(self, sock: socket.socket, peer: str, max_frame_bytes: int) -> None:
        self._sock = sock
        self._peer = peer
        self._max_frame_bytes = max_frame_bytes
        self._chunk = _new_chunk(_CHUNK_BYTES)
        self._start = 0
        self._end = 0
        self._frame_bytes = _UNKNOWN
        """Size of the frame that starts at `_start`."""
        self._refused: WireError | None = None
        """Why the frame after the last one delivered is not."""
        self._skip_bytes = 0
        self._drained = False
        self._lost = ""

    @property
    def has_frame(self) -> bool:
        """Whether `next_frame` has something to say without asking the kernel."""
        if self._refused is not None:
            return True
        return _UNKNOWN < self._frame_bytes <= self._end - self._start

    def next_frame(self) -> Frame | None:
        """Return the next whole frame, or None when the kernel has no more bytes.

        Raises `LinkLostError` at the end of the stream, `WireError` for a frame that is not one.
        """
        while not self.has_frame:
            if self._drained:
                # The last read took all there was; the poller will say when there is more.
                self._drained = False
                return None
            if not self._fill():
                return None
        if self._refused is not None:
            refused, self._refused = self._refused, None
            raise refused
        return decode(self._cut(), self._max_frame_bytes)

    def _fill(self) -> bool:
        """Read what the kernel has, up to the room there is; False when it has nothing."""
        if self._lost:
            raise LinkLostError(self._peer, self._lost)
        if self._skip_bytes:
            return self._skip()
        missing = max(_LEAST_ROOM_BYTES, self._frame_bytes - (self._end - self._start))
        if len(self._chunk) - self._end < missing:
            self._move(max(_CHUNK_BYTES, self._frame_bytes + _LEAST_ROOM_BYTES))
        room = self._chunk[self._end :]
        count = self._read(room)
        self._end += count
        self._drained = 0 < count < len(room)
        self._look()
        return count > 0

    def _cut(self) -> memoryview:
        """Take the frame at `_start`, which is whole, and look at the one after it."""
        data = self._chunk[self._start : self._start + self._frame_bytes]
        self._start += self._frame_bytes
        self._frame_bytes = _UNKNOWN
        if self._start % 8:
            self._realign()
        self._look()
        return data

    def _look(self) -> None:
        """Learn the size of the frame at `_start`; put aside the error of one that is refused.

        Raises nothing: the frame before it is still to be delivered.
        """
        have = self._end - self._start
        if self._frame_bytes != _UNKNOWN or have < PREAMBLE_BYTES:
            return
        try:
            self._frame_bytes = frame_bytes(self._chunk[self._start : self._end])
            if self._frame_bytes > have:
                check_frame_size(self._frame_bytes, self._max_frame_bytes)
        except MalformedFrameError as error:
            self._refused = error
            self._lost = "the byte stream cannot be followed"
            self._start = self._end
        except FrameTooLargeError as error:
            self._refused = error
            self._skip_bytes = self._frame_bytes - have
            self._start = self._end
            self._frame_bytes = _UNKNOWN

    def _skip(self) -> bool:
        count = self._read(_new_chunk(min(self._skip_bytes, _SKIP_BYTES)))
        self._skip_bytes -= count
        if not self._skip_bytes:
            self._realign()
        return count > 0

    def _read(self, room: memoryview) -> int:
        try:
            count = self._sock.recv_into(room)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._lost = error.strerror or "broken"
            raise LinkLostError(self._peer, self._lost) from error
        if count == 0:
            self._lost = "closed the connection"
            raise LinkLostError(self._peer, self._lost)
        return count

    def _realign(self) -> None:
        """Bring `_start` to the 8-byte grid."""
        if self._start == self._end and self._end + 8 <= len(self._chunk):
            self._start = self._end = (self._end + 7) & ~7
        else:
            self._move(_CHUNK_BYTES)

    def _move(self, size: int) -> None:
        """Carry the bytes not yet cut to the start of a new chunk."""
        rest = self._chunk[self._start : self._end]
        self._chunk = _new_chunk(max(size, len(rest) + _LEAST_ROOM_BYTES))
        self._chunk[: len(rest)] = rest
        self._start, self._end = 0, len(rest)


def _new_chunk(size: int) -> memoryview:
    # numpy's memory is not filled with zeros first, which a bytearray's is.
    return np.empty(size, np.uint8).data
