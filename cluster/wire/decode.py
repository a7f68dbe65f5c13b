"""Bytes to frames, trusting nothing: every size is checked against the bytes that are there.

Whatever the bytes, `decode` returns a frame or raises a `WireError`, and allocates nothing in
proportion to a number it has read.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cluster.checksum import checksum
from cluster.errors import (
    ChecksumError,
    FrameTooLargeError,
    MalformedFrameError,
    ProtocolVersionError,
)
from cluster.types import Fingerprint, PlacementVersion
from cluster.wire import layout
from cluster.wire.frames import (
    Busy,
    CallError,
    CallId,
    ExpertCall,
    ExpertReply,
    Frame,
    GroupNote,
    GroupVerb,
    Hello,
    Int32,
    Parcel,
    ParcelRows,
    Ping,
    Pong,
    Refused,
    Welcome,
)

# torch warns, once per process and way, that a tensor over read-only bytes must not be written.
# What arrives is read only, by contract; the warnings are spent here.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.frombuffer(b"\0", dtype=torch.uint8)
    torch.from_numpy(np.frombuffer(b"\0", np.uint8))


class Body(NamedTuple):
    """A frame's bytes after the preamble has been checked. Offsets count from the frame's start."""

    buffer: memoryview
    header_at: int
    payload_at: int
    payload_bytes: int
    rows_B: Tensor | None = None
    """The frame's rows when they are not in `buffer`, with the bytes that go on behind it."""


def frame_bytes(preamble: bytes | bytearray | memoryview) -> int:
    """Return the size of the frame that starts with these (at least 24) bytes.

    Raises `MalformedFrameError` when they are no preamble: a stream cannot be followed any
    further then. The caller compares the size with its bound before it allocates.
    """
    magic, _, _, _, header_bytes, payload_bytes, _, _ = layout.PREAMBLE.unpack_from(preamble)
    if magic != layout.MAGIC:
        raise MalformedFrameError(f"a frame starts with {layout.MAGIC!r}, found {magic!r}")
    total: int = layout.PREAMBLE_BYTES + header_bytes + payload_bytes
    return total


def check_frame_size(num_bytes: int, max_frame_bytes: int) -> None:
    """Raise `FrameTooLargeError` when a frame of this size is over the bound."""
    if num_bytes > max_frame_bytes:
        raise FrameTooLargeError(
            f"a frame of {num_bytes} bytes is over the bound of {max_frame_bytes}; "
            f"send fewer rows per call"
        )


def decode(
    data: bytes | bytearray | memoryview, max_frame_bytes: int = layout.DEFAULT_MAX_FRAME_BYTES
) -> Frame:
    """Decode one whole frame; arrays and rows alias `data` and must not be written.

    Raises `MalformedFrameError`, `FrameTooLargeError`, `ProtocolVersionError`, `ChecksumError`.
    """
    return _decode(memoryview(data), None, max_frame_bytes)


def decode_apart(
    head: bytes | memoryview,
    rows_B: Tensor,
    max_frame_bytes: int = layout.DEFAULT_MAX_FRAME_BYTES,
) -> ExpertCall | ExpertReply:
    """Decode a frame whose rows lie elsewhere, (B,) bytes on any device; they are aliased.

    The twin of `encode_apart`; raises as `decode` does. Rows on a device are not checked.
    """
    frame = _decode(memoryview(head), rows_B, max_frame_bytes)
    if not isinstance(frame, ExpertCall | ExpertReply):
        raise MalformedFrameError(f"a {type(frame).__name__} has no rows")
    return frame


def _decode(buffer: memoryview, rows_B: Tensor | None, max_frame_bytes: int) -> Frame:
    if len(buffer) < layout.PREAMBLE_BYTES:
        raise MalformedFrameError(
            f"a frame has at least {layout.PREAMBLE_BYTES} bytes, found {len(buffer)}"
        )
    total = frame_bytes(buffer)
    check_frame_size(total, max_frame_bytes)
    _, version, kind, flags, header_bytes, payload_bytes, expected, reserved = (
        layout.PREAMBLE.unpack_from(buffer)
    )
    if version != layout.PROTOCOL_VERSION:
        raise ProtocolVersionError(
            f"the peer speaks protocol version {version}, this side {layout.PROTOCOL_VERSION}"
        )
    found = len(buffer) + (0 if rows_B is None else len(rows_B))
    if total != found:
        raise MalformedFrameError(f"the frame says {total} bytes, found {found}")
    covered = [buffer[:16], buffer[layout.PREAMBLE_BYTES :]]
    if rows_B is not None and not flags & layout.FLAG_ROWS_UNCHECKED:
        covered.append(rows_B.cpu().numpy().data)
    if checksum(*covered) != expected:
        raise ChecksumError(f"checksum mismatch in a frame of {total} bytes")
    decoder = _DECODERS.get(kind)
    allowed_flags = 0 if rows_B is None else layout.FLAG_ROWS_UNCHECKED
    if decoder is None or flags & ~allowed_flags or reserved:
        raise MalformedFrameError(f"unknown frame kind {kind} or flags {flags}")
    if header_bytes != _HEADER_BYTES[kind]:
        raise MalformedFrameError(
            f"header of frame kind {kind} has {header_bytes} bytes, not {_HEADER_BYTES[kind]}"
        )
    header_at = layout.PREAMBLE_BYTES
    return decoder(Body(buffer, header_at, header_at + header_bytes, payload_bytes, rows_B))


def _check_count(name: str, value: int, limit: int) -> None:
    if value > limit:
        raise MalformedFrameError(f"{name} is {value}; the limit is {limit}")


def _check_payload(expected: int, body: Body) -> None:
    if expected != body.payload_bytes:
        raise MalformedFrameError(
            f"the counts ask for {expected} payload bytes, found {body.payload_bytes}"
        )


def _dtype(code: int) -> torch.dtype:
    if code >= len(layout.DTYPES):
        raise MalformedFrameError(f"unknown dtype code {code}; known: 0 float32, 1 bfloat16")
    return layout.DTYPES[code]


def _rows(body: Body, offset: int, count: int, width: int, dtype: torch.dtype) -> Tensor:
    if body.rows_B is not None:
        if count * width * dtype.itemsize != len(body.rows_B) or offset != len(body.buffer):
            raise MalformedFrameError(f"{count} rows of {width} are not {len(body.rows_B)} bytes")
        return body.rows_B.view(dtype).view(count, width)
    if count == 0 or width == 0:
        return torch.empty((count, width), dtype=dtype)
    flat = torch.frombuffer(body.buffer, dtype=dtype, count=count * width, offset=offset)
    return flat.view(count, width)


def _decode_call(body: Body) -> ExpertCall:
    (
        rank, micro_batch, layer, attempt, incarnation, step,
        model, epoch, counter, budget_us, dtype_code, scale_mode, groups, rows, tokens, width,
    ) = layout.CALL.unpack_from(body.buffer, body.header_at)  # fmt: skip
    _check_count("num_groups", groups, layout.MAX_GROUPS)
    _check_count("num_rows", rows, layout.MAX_ROWS)
    _check_count("num_tokens", tokens, layout.MAX_ROWS)
    _check_count("hidden_size", width, layout.MAX_WIDTH)
    if scale_mode != layout.SCALE_MODE_NONE:
        raise MalformedFrameError(f"scale_mode {scale_mode} is not supported; supported: 0 (none)")
    dtype = _dtype(dtype_code)
    offsets_at = layout.padded(4 * groups)
    token_idx_at = offsets_at + layout.padded(4 * (groups + 1))
    hidden_at = token_idx_at + layout.padded(4 * rows)
    _check_payload(hidden_at + tokens * width * dtype.itemsize, body)
    at = body.payload_at
    expert_ids_G = np.frombuffer(body.buffer, np.int32, groups, at)
    row_offsets_G1 = np.frombuffer(body.buffer, np.int32, groups + 1, at + offsets_at)
    token_idx_N = np.frombuffer(body.buffer, np.int32, rows, at + token_idx_at)
    _check_groups(expert_ids_G, row_offsets_G1, rows)
    _check_token_idx(token_idx_N, tokens)
    return ExpertCall(
        CallId(rank, incarnation, step, micro_batch, layer, attempt),
        model,
        PlacementVersion(epoch, counter),
        budget_us,
        expert_ids_G,
        row_offsets_G1,
        token_idx_N,
        _rows(body, at + hidden_at, tokens, width, dtype),
    )


def _check_groups(expert_ids_G: Int32, row_offsets_G1: Int32, num_rows: int) -> None:
    if row_offsets_G1[0] != 0 or row_offsets_G1[-1] != num_rows:
        raise MalformedFrameError(
            f"row offsets run from {row_offsets_G1[0]} to {row_offsets_G1[-1]}, "
            f"not from 0 to {num_rows}"
        )
    if len(expert_ids_G) == 0:
        return
    if (row_offsets_G1[1:] < row_offsets_G1[:-1]).any():
        raise MalformedFrameError("row offsets decrease")
    # Read as unsigned, a negative id is a huge one: one comparison for both bounds.
    if expert_ids_G.view(np.uint32).max() >= layout.MAX_EXPERTS:
        raise MalformedFrameError(f"an expert id is not within 0 … {layout.MAX_EXPERTS - 1}")


def _check_token_idx(token_idx_N: Int32, num_tokens: int) -> None:
    if len(token_idx_N) and token_idx_N.view(np.uint32).max() >= num_tokens:
        raise MalformedFrameError(f"a token index is not within 0 … {num_tokens - 1}")


def _decode_reply(body: Body) -> ExpertReply:
    (
        rank, micro_batch, layer, attempt, incarnation, step,
        shard_incarnation, epoch, counter, queue_us, compute_us, dtype_code, rows, width,
    ) = layout.REPLY.unpack_from(body.buffer, body.header_at)  # fmt: skip
    _check_count("num_rows", rows, layout.MAX_ROWS)
    _check_count("hidden_size", width, layout.MAX_WIDTH)
    dtype = _dtype(dtype_code)
    _check_payload(rows * width * dtype.itemsize, body)
    return ExpertReply(
        CallId(rank, incarnation, step, micro_batch, layer, attempt),
        shard_incarnation,
        PlacementVersion(epoch, counter),
        _rows(body, body.payload_at, rows, width, dtype),
        queue_us,
        compute_us,
    )


def _texts(body: Body, first_bytes: int, second_bytes: int) -> tuple[str, str]:
    _check_count("text_bytes", max(first_bytes, second_bytes), layout.MAX_TEXT_BYTES)
    _check_payload(first_bytes + second_bytes, body)
    middle = body.payload_at + first_bytes
    try:
        first = str(body.buffer[body.payload_at : middle], "utf-8")
        second = str(body.buffer[middle : middle + second_bytes], "utf-8")
    except UnicodeDecodeError as error:
        raise MalformedFrameError(f"a text is not UTF-8: {error.reason}") from error
    return first, second


def _decode_call_error(body: Body) -> CallError:
    rank, micro_batch, layer, attempt, incarnation, step, epoch, counter, code_bytes, text_bytes = (
        layout.CALL_ERROR.unpack_from(body.buffer, body.header_at)
    )
    code, message = _texts(body, code_bytes, text_bytes)
    call_id = CallId(rank, incarnation, step, micro_batch, layer, attempt)
    return CallError(call_id, code, message, PlacementVersion(epoch, counter))


def _decode_hello(body: Body) -> Hello:
    model, rank, incarnation, epoch, bit_class_bytes, token_bytes = layout.HELLO.unpack_from(
        body.buffer, body.header_at
    )
    bit_class, token = _texts(body, bit_class_bytes, token_bytes)
    return Hello(Fingerprint(model, bit_class), rank, incarnation, epoch, token)


def _decode_welcome(body: Body) -> Welcome:
    _check_payload(0, body)
    shard_id, incarnation, epoch, counter = layout.WELCOME.unpack_from(body.buffer, body.header_at)
    return Welcome(shard_id, incarnation, PlacementVersion(epoch, counter))


def _decode_refused(body: Body) -> Refused:
    code_bytes, text_bytes = layout.REFUSED.unpack_from(body.buffer, body.header_at)
    return Refused(*_texts(body, code_bytes, text_bytes))


def _number(body: Body) -> int:
    _check_payload(0, body)
    number: int = layout.NUMBER.unpack_from(body.buffer, body.header_at)[0]
    return number


def _decode_group_note(body: Body) -> GroupNote:
    verb, generation, number, text_bytes, reserved, data_bytes = layout.GROUP_NOTE.unpack_from(
        body.buffer, body.header_at
    )
    _check_count("data_bytes", data_bytes, layout.MAX_STORE_BYTES)
    _check_count("text_bytes", text_bytes, layout.MAX_TEXT_BYTES)
    _check_payload(text_bytes + data_bytes, body)
    try:
        known = GroupVerb(verb)
        text = str(body.buffer[body.payload_at : body.payload_at + text_bytes], "utf-8")
    except ValueError as error:
        raise MalformedFrameError(f"a note about a group: {error}") from error
    if reserved:
        raise MalformedFrameError(f"a note about a group has {reserved} where 0 belongs")
    data = bytes(body.buffer[body.payload_at + text_bytes :])
    return GroupNote(known, generation, number, text, data)


def _decode_parcel(body: Body) -> Parcel:
    generation, sequence, num_received, rows_bytes = layout.PARCEL.unpack_from(
        body.buffer, body.header_at
    )
    head = body.buffer[body.payload_at :]
    return Parcel(generation, sequence, num_received, rows_bytes, head)


def _decode_parcel_rows(body: Body) -> ParcelRows:
    generation, sequence = layout.PARCEL_ROWS.unpack_from(body.buffer, body.header_at)
    rows_B = _rows(body, body.payload_at, 1, body.payload_bytes, torch.uint8).view(-1)
    return ParcelRows(generation, sequence, rows_B)


_DECODERS: Final[dict[int, Callable[[Body], Frame]]] = {
    layout.KIND_CALL: _decode_call,
    layout.KIND_REPLY: _decode_reply,
    layout.KIND_CALL_ERROR: _decode_call_error,
    layout.KIND_HELLO: _decode_hello,
    layout.KIND_WELCOME: _decode_welcome,
    layout.KIND_REFUSED: _decode_refused,
    layout.KIND_PING: lambda body: Ping(_number(body)),
    layout.KIND_PONG: lambda body: Pong(_number(body)),
    layout.KIND_BUSY: lambda body: Busy(_number(body)),
    layout.KIND_GROUP_NOTE: _decode_group_note,
    layout.KIND_PARCEL: _decode_parcel,
    layout.KIND_PARCEL_ROWS: _decode_parcel_rows,
}
_HEADER_BYTES: Final[dict[int, int]] = {
    layout.KIND_CALL: layout.CALL.size,
    layout.KIND_REPLY: layout.REPLY.size,
    layout.KIND_CALL_ERROR: layout.CALL_ERROR.size,
    layout.KIND_HELLO: layout.HELLO.size,
    layout.KIND_WELCOME: layout.WELCOME.size,
    layout.KIND_REFUSED: layout.REFUSED.size,
    layout.KIND_PING: layout.NUMBER.size,
    layout.KIND_PONG: layout.NUMBER.size,
    layout.KIND_BUSY: layout.NUMBER.size,
    layout.KIND_GROUP_NOTE: layout.GROUP_NOTE.size,
    layout.KIND_PARCEL: layout.PARCEL.size,
    layout.KIND_PARCEL_ROWS: layout.PARCEL_ROWS.size,
}
