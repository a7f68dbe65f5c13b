"""Frames survive the wire bit for bit, and what is no frame is refused by name."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.checksum import checksum
from cluster.errors import (
    ChecksumError,
    FrameTooLargeError,
    MalformedFrameError,
    ProtocolVersionError,
)
from cluster.wire import (
    ExpertCall,
    ExpertReply,
    Frame,
    Ping,
    Refused,
    decode,
    decode_apart,
    encode,
    encode_apart,
    encoded_bytes,
    layout,
)
from cluster.wire.decode import frame_bytes
from tests.support.frames import CALL_ID, a_call, a_reply, about_groups, one_of_each, same


def wire(frame: Frame) -> bytearray:
    return bytearray(b"".join(encode(frame)))


def resealed(data: bytearray) -> bytearray:
    """Give changed bytes a right checksum, so that the checks behind it are reached."""
    total = checksum(data[:16], data[layout.PREAMBLE_BYTES :])
    data[16:20] = struct.pack("<I", total)
    return data


@pytest.mark.parametrize(
    "frame", [*one_of_each(), *about_groups()], ids=lambda frame: type(frame).__name__
)
def test_a_frame_comes_back_as_it_was(frame: Frame) -> None:
    assert same(decode(bytes(wire(frame))), frame)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 2, 5])
@pytest.mark.parametrize("num_experts", [0, 1, 2, 3])
def test_arrays_of_any_length_keep_their_bits(
    dtype: torch.dtype, num_tokens: int, num_experts: int
) -> None:
    call = a_call(num_tokens, tuple(range(num_experts)), dtype=dtype, width=3)
    assert same(decode(wire(call)), call)


@pytest.mark.parametrize("frame", [a_call(), a_reply()], ids=lambda frame: type(frame).__name__)
def test_a_frame_whose_rows_go_apart_comes_back_as_it_was(frame: ExpertCall | ExpertReply) -> None:
    head, rows_B = encode_apart(frame)
    assert head + bytes(rows_B.numpy().data) == wire(frame)
    assert same(decode_apart(head, rows_B), frame)


def test_rows_that_went_apart_are_checked_and_counted() -> None:
    head, rows_B = encode_apart(a_reply())
    damaged_B = rows_B.clone()
    damaged_B[-1] ^= 1
    with pytest.raises(ChecksumError):
        decode_apart(head, damaged_B)
    with pytest.raises(MalformedFrameError, match="found"):
        decode_apart(head, rows_B[:-8])


def test_a_frame_that_leaves_its_rows_unchecked_is_none_by_itself() -> None:
    data = wire(a_reply())
    data[7] = layout.FLAG_ROWS_UNCHECKED
    with pytest.raises(MalformedFrameError, match="flags 1"):
        decode(resealed(data))


def test_what_has_no_rows_cannot_come_apart() -> None:
    with pytest.raises(MalformedFrameError):
        decode_apart(bytes(wire(Ping(1))), torch.empty(0, dtype=torch.uint8))


def test_a_call_without_rows_is_a_frame_too() -> None:
    call = replace(a_call(1, ()), hidden_TD=torch.empty(0, 8, dtype=torch.bfloat16))
    assert same(decode(wire(call)), call)


def test_special_values_keep_their_bits() -> None:
    bits = torch.tensor([0x7FC0, 0x7F80, 0xFF80, 0x8000, 0x0001, 0x7FA5], dtype=torch.int32)
    rows = bits.to(torch.int16).view(torch.bfloat16).view(2, 3)
    back = decode(wire(replace(a_reply(), rows_ND=rows)))
    assert torch.equal(back.rows_ND.view(torch.int16), rows.view(torch.int16))  # type: ignore[union-attr]


def test_rows_that_are_not_contiguous_are_sent_in_their_order() -> None:
    rows = torch.arange(24.0).view(4, 6).t()
    back = decode(wire(replace(a_reply(), rows_ND=rows)))
    assert torch.equal(back.rows_ND, rows)  # type: ignore[union-attr]


def test_decoding_copies_no_array() -> None:
    data = wire(a_call())
    call = decode(data)
    assert isinstance(call, ExpertCall)
    # The last value of the last array is the frame's last.
    data[-2:] = b"\x80\x3f"
    assert call.hidden_TD[-1, -1] == 1.0


def test_encoding_copies_no_row() -> None:
    reply = a_reply()
    _, rows = encode(reply)
    reply.rows_ND[0, 0] = 1.0
    assert bytes(rows[:4]) == struct.pack("<f", 1.0)


def test_the_preamble_tells_the_size() -> None:
    buffers = encode(a_call(100))
    assert frame_bytes(b"".join(buffers)[:24]) == encoded_bytes(buffers)


def test_a_long_text_is_cut_at_a_characters_edge() -> None:
    back = decode(wire(Refused("code", "ä" * 5000)))
    assert isinstance(back, Refused)
    assert set(back.message) == {"ä"}
    assert len(back.message) == layout.MAX_TEXT_BYTES // 2


def test_another_protocol_version_is_named() -> None:
    data = wire(Ping(1))
    data[4:6] = struct.pack("<H", 9)
    with pytest.raises(ProtocolVersionError, match="version 9"):
        decode(data)


def test_a_damaged_byte_is_a_checksum_error() -> None:
    data = wire(a_reply())
    data[-1] ^= 1
    with pytest.raises(ChecksumError):
        decode(data)


def test_a_frame_over_the_bound_is_refused_before_anything_else() -> None:
    with pytest.raises(FrameTooLargeError, match="bound of 64"):
        decode(wire(a_reply(4, 64)), max_frame_bytes=64)


@pytest.mark.parametrize("keep", [0, 1, 23, 24, 60, -1])
def test_a_truncated_frame_is_malformed(keep: int) -> None:
    with pytest.raises(MalformedFrameError):
        decode(wire(a_call())[:keep])


def test_trailing_bytes_are_malformed() -> None:
    with pytest.raises(MalformedFrameError, match="found"):
        decode(wire(Ping(1)) + b"\0")


@pytest.mark.parametrize(
    ("offset", "value", "problem"),
    [
        (72, struct.pack("<B", 7), "dtype code 7"),
        (73, struct.pack("<B", 3), "scale_mode 3"),
        (76, struct.pack("<I", 5000), "num_groups is 5000"),
        (76, struct.pack("<I", 2), "the counts ask for"),
        (80, struct.pack("<I", 2**31), "num_rows is"),
        (84, struct.pack("<I", 2**31), "num_tokens is"),
        (88, struct.pack("<I", 2**31), "hidden_size is"),
    ],
)
def test_a_header_that_contradicts_the_payload_is_malformed(
    offset: int, value: bytes, problem: str
) -> None:
    data = wire(a_call())
    at = layout.PREAMBLE_BYTES + offset
    data[at : at + len(value)] = value
    with pytest.raises(MalformedFrameError, match=problem):
        decode(resealed(data))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"row_offsets_G1": np.array([0, 6, 3, 9], np.int32)}, "decrease"),
        ({"row_offsets_G1": np.array([1, 3, 6, 9], np.int32)}, "from 1 to 9"),
        ({"row_offsets_G1": np.array([0, 3, 6, 8], np.int32)}, "from 0 to 8"),
        ({"token_idx_N": np.array([0, 1, 2] * 2 + [0, 1, 3], np.int32)}, "token index"),
        ({"token_idx_N": np.array([0, 1, 2] * 2 + [0, 1, -1], np.int32)}, "token index"),
        ({"expert_ids_G": np.array([5, -7, 250], np.int32)}, "expert id"),
        ({"expert_ids_G": np.array([5, 7, 2**16], np.int32)}, "expert id"),
    ],
)
def test_groups_that_do_not_fit_their_rows_are_malformed(
    change: dict[str, np.ndarray], problem: str
) -> None:
    with pytest.raises(MalformedFrameError, match=problem):
        decode(wire(replace(a_call(), **change)))  # type: ignore[arg-type]


@pytest.mark.parametrize("position", [6, 7, 20], ids=["kind", "flags", "reserved"])
def test_unknown_kinds_and_set_reserved_bits_are_malformed(position: int) -> None:
    data = wire(Ping(1))
    data[position] = 200
    with pytest.raises(MalformedFrameError):
        decode(resealed(data))


def test_a_text_that_is_not_utf8_is_malformed() -> None:
    data = wire(Refused("code", "text"))
    data[-1] = 0xFF
    with pytest.raises(MalformedFrameError, match="UTF-8"):
        decode(resealed(data))


def test_an_identity_is_equal_only_to_itself() -> None:
    others = [CALL_ID._replace(**{name: 0}) for name in CALL_ID._fields]
    assert len({CALL_ID, *others}) == 1 + len(CALL_ID)
