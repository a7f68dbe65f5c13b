"""Cutting a stream: whatever the pieces it comes in, frames come out whole, aligned and apart."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import FrameTooLargeError, LinkLostError, MalformedFrameError, TrinityError
from cluster.transport.frame_reader import FrameReader
from cluster.wire import ExpertReply, Frame, Ping, encode
from tests.support.frames import a_reply, one_of_each, same


class Stream:
    """A socket pair with a reader at one end."""

    def __init__(self, max_frame_bytes: int = 2**20) -> None:
        self.writer, self.read_end = socket.socketpair()
        self.read_end.setblocking(False)
        self.reader = FrameReader(self.read_end, "peer", max_frame_bytes)

    def write(self, data: bytes) -> list[Frame | TrinityError]:
        """Send bytes; return what the reader makes of them."""
        self.writer.sendall(data)
        return self.read()

    def read(self) -> list[Frame | TrinityError]:
        found: list[Frame | TrinityError] = []
        # None twice: the first may only say that the last read took all there was.
        empty = 0
        while empty < 2:
            try:
                frame = self.reader.next_frame()
            except TrinityError as error:
                found.append(error)
                if isinstance(error, LinkLostError):
                    return found
                continue
            empty = empty + 1 if frame is None else 0
            if frame is not None:
                found.append(frame)
        return found

    def close(self) -> None:
        self.writer.close()
        self.read_end.close()


@pytest.fixture
def stream() -> Iterator[Stream]:
    stream = Stream()
    yield stream
    stream.close()


def wire(frame: Frame) -> bytes:
    return b"".join(encode(frame))


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 400), max_size=30))
def test_frames_come_out_whole_however_the_bytes_are_cut(cuts: list[int]) -> None:
    stream = Stream()
    frames = one_of_each()
    data = b"".join(map(wire, frames))
    found: list[Frame | TrinityError] = []
    for cut in cuts:
        found += stream.write(data[:cut]) if data[:cut] else []
        data = data[cut:]
    found += stream.write(data)
    stream.close()
    assert len(found) == len(frames)
    assert all(map(same, found, frames))


def test_rows_start_on_the_eight_byte_grid_whatever_came_before(stream: Stream) -> None:
    odd = [frame for frame in one_of_each() if len(wire(frame)) % 8]
    assert odd
    for frame in odd:
        found = stream.write(wire(frame) + wire(a_reply()) + wire(frame) + wire(a_reply()))
        replies = [reply for reply in found if isinstance(reply, ExpertReply)]
        assert [reply.rows_ND.data_ptr() % 8 for reply in replies] == [0, 0]


def test_a_frame_larger_than_a_chunk_is_taken_piece_by_piece(stream: Stream) -> None:
    frame = a_reply(700, 256)
    data = wire(frame)
    found = []
    for start in range(0, len(data), 50_000):
        found += stream.write(data[start : start + 50_000])
    assert len(found) == 1
    assert same(found[0], frame)


@pytest.mark.parametrize("piece", [30, 10_000, 10**6])
def test_a_frame_over_the_bound_is_skipped_and_its_neighbours_delivered(piece: int) -> None:
    stream = Stream(max_frame_bytes=5_000)
    data = wire(Ping(1)) + wire(a_reply(100, 16)) + wire(Ping(2))
    found = []
    for start in range(0, len(data), piece):
        found += stream.write(data[start : start + piece])
    stream.close()
    assert [type(item) for item in found] == [Ping, FrameTooLargeError, Ping]


def test_bytes_that_are_no_frame_end_the_stream_after_the_frames_before_them(
    stream: Stream,
) -> None:
    found = stream.write(wire(Ping(1)) + b"no frame at all, not even close" * 3)
    assert [type(item) for item in found] == [Ping, MalformedFrameError, LinkLostError]


def test_the_end_of_the_stream_in_the_middle_of_a_frame_is_a_lost_link(stream: Stream) -> None:
    stream.writer.sendall(wire(Ping(1)) + wire(Ping(2))[:-3])
    stream.writer.close()
    assert [type(item) for item in stream.read()] == [Ping, LinkLostError]
    assert [type(item) for item in stream.read()] == [LinkLostError]
