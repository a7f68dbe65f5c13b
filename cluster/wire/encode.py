"""Frames to bytes: one small head, and the rows as they lie in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor

from cluster.checksum import checksum
from cluster.wire import layout
from cluster.wire.frames import (
    Busy,
    CallError,
    CallId,
    ExpertCall,
    ExpertReply,
    Frame,
    GroupNote,
    Hello,
    Parcel,
    ParcelRows,
    Ping,
    Pong,
    Refused,
    Welcome,
)

Buffer = bytes | memoryview
_PADS: Final = tuple(b"\0" * size for size in range(8))


class Parts(NamedTuple):
    """What a frame is put together from."""

    kind: int
    header: bytes
    head: bytes = b""
    """The payload up to the rows."""
    rows: Tensor | None = None


def encode(frame: Frame) -> list[Buffer]:
    """Return the frame's bytes in one or two buffers: head, and rows (not copied).

    The rows' buffer aliases the frame's tensor, which must not change until the bytes are sent.
    """
    parts = _ENCODERS[type(frame)](frame)
    rows = None if parts.rows is None else _rows_view(parts.rows)
    size = 0 if rows is None else len(rows)
    head = _sealed(parts, size, rows)
    return [head] if rows is None else [head, rows]


def encode_apart(frame: ExpertCall | ExpertReply) -> tuple[bytes, Tensor]:
    """Return the frame's head, and its rows as (B,) bytes where they lie (not copied).

    Does not wait for a device: the checksum covers rows on the host only.
    """
    parts = _ENCODERS[type(frame)](frame)
    assert parts.rows is not None
    rows_B = parts.rows.detach().contiguous().view(torch.uint8).view(-1)
    if rows_B.is_cuda:
        return _sealed(parts, len(rows_B), None, layout.FLAG_ROWS_UNCHECKED), rows_B
    return _sealed(parts, len(rows_B), rows_B.numpy().data), rows_B


def encoded_bytes(buffers: list[Buffer]) -> int:
    """Return the total size of `encode`'s result."""
    return sum(map(len, buffers))


def _id_fields(call_id: CallId) -> tuple[int, int, int, int, int, int]:
    rank, incarnation, step, micro_batch, layer, attempt = call_id
    return rank, micro_batch, layer, attempt, incarnation, step


def _rows_view(rows: Tensor) -> memoryview | None:
    """Return the bytes of a (R, D) tensor, copied only if it is not contiguous; None if empty."""
    if rows.numel() == 0:
        return None
    flat = rows.detach().contiguous().view(torch.uint8).view(-1)
    return flat.cpu().numpy().data


def _sealed(parts: Parts, rows_bytes: int, rows: memoryview | None, flags: int = 0) -> bytes:
    """Put the preamble with sizes and checksum before header and small payload.

    `rows` are what the checksum is to cover of the `rows_bytes` that follow.
    """
    checked = layout.CHECKED_PREAMBLE.pack(
        layout.MAGIC,
        layout.PROTOCOL_VERSION,
        parts.kind,
        flags,
        len(parts.header),
        len(parts.head) + rows_bytes,
    )
    body = parts.header + parts.head
    covered = (checked, body) if rows is None else (checked, body, rows)
    total = checksum(*covered).to_bytes(4, "little")
    return b"".join((checked, total, _PADS[4], body))


def _encode_call(frame: ExpertCall) -> Parts:
    num_groups, num_rows = len(frame.expert_ids_G), len(frame.token_idx_N)
    num_tokens, width = frame.hidden_TD.shape
    header = layout.CALL.pack(
        *_id_fields(frame.call_id),
        frame.model,
        frame.placement_version.epoch,
        frame.placement_version.counter,
        frame.budget_us,
        layout.DTYPE_CODES[frame.hidden_TD.dtype],
        layout.SCALE_MODE_NONE,
        num_groups,
        num_rows,
        num_tokens,
        width,
    )
    head = b"".join(
        (
            frame.expert_ids_G.tobytes(),
            _PADS[4 * (num_groups % 2)],
            frame.row_offsets_G1.tobytes(),
            _PADS[4 * ((num_groups + 1) % 2)],
            frame.token_idx_N.tobytes(),
            _PADS[4 * (num_rows % 2)],
        )
    )
    return Parts(layout.KIND_CALL, header, head, frame.hidden_TD)


def _encode_reply(frame: ExpertReply) -> Parts:
    num_rows, width = frame.rows_ND.shape
    header = layout.REPLY.pack(
        *_id_fields(frame.call_id),
        frame.shard_incarnation,
        frame.placement_version.epoch,
        frame.placement_version.counter,
        frame.queue_us,
        frame.compute_us,
        layout.DTYPE_CODES[frame.rows_ND.dtype],
        num_rows,
        width,
    )
    return Parts(layout.KIND_REPLY, header, b"", frame.rows_ND)


def _text(text: str) -> bytes:
    """UTF-8, cut to the bound at a character's edge."""
    data = text.encode("utf-8", "replace")
    if len(data) <= layout.MAX_TEXT_BYTES:
        return data
    return data[: layout.MAX_TEXT_BYTES].decode("utf-8", "ignore").encode()


def _encode_call_error(frame: CallError) -> Parts:
    code, message = _text(frame.code), _text(frame.message)
    version = frame.placement_version
    header = layout.CALL_ERROR.pack(
        *_id_fields(frame.call_id), version.epoch, version.counter, len(code), len(message)
    )
    return Parts(layout.KIND_CALL_ERROR, header, code + message)


def _encode_hello(frame: Hello) -> Parts:
    bit_class, token = _text(frame.fingerprint.bit_class), _text(frame.token)
    header = layout.HELLO.pack(
        frame.fingerprint.model,
        frame.rank,
        frame.incarnation,
        frame.epoch,
        len(bit_class),
        len(token),
    )
    return Parts(layout.KIND_HELLO, header, bit_class + token)


def _encode_welcome(frame: Welcome) -> Parts:
    version = frame.placement_version
    header = layout.WELCOME.pack(frame.shard_id, frame.incarnation, version.epoch, version.counter)
    return Parts(layout.KIND_WELCOME, header)


def _encode_refused(frame: Refused) -> Parts:
    code, message = _text(frame.code), _text(frame.message)
    header = layout.REFUSED.pack(len(code), len(message))
    return Parts(layout.KIND_REFUSED, header, code + message)


def _encode_ping(frame: Ping) -> Parts:
    return Parts(layout.KIND_PING, layout.NUMBER.pack(frame.nonce))


def _encode_pong(frame: Pong) -> Parts:
    return Parts(layout.KIND_PONG, layout.NUMBER.pack(frame.nonce))


def _encode_busy(frame: Busy) -> Parts:
    return Parts(layout.KIND_BUSY, layout.NUMBER.pack(frame.for_us))


def _encode_group_note(frame: GroupNote) -> Parts:
    text = _text(frame.text)
    assert len(frame.data) <= layout.MAX_STORE_BYTES
    header = layout.GROUP_NOTE.pack(
        frame.verb, frame.generation, frame.number, len(text), 0, len(frame.data)
    )
    return Parts(layout.KIND_GROUP_NOTE, header, text + frame.data)


def _encode_parcel(frame: Parcel) -> Parts:
    header = layout.PARCEL.pack(
        frame.generation, frame.sequence, frame.num_received, frame.rows_bytes
    )
    return Parts(layout.KIND_PARCEL, header, bytes(frame.head))


def _encode_parcel_rows(frame: ParcelRows) -> Parts:
    header = layout.PARCEL_ROWS.pack(frame.generation, frame.sequence)
    return Parts(layout.KIND_PARCEL_ROWS, header, b"", frame.rows_B)


# Each encoder takes the one type it is registered for, which the dict's type cannot say.
_ENCODERS: Final[dict[type, Callable[..., Parts]]] = {
    ExpertCall: _encode_call,
    ExpertReply: _encode_reply,
    CallError: _encode_call_error,
    Hello: _encode_hello,
    Welcome: _encode_welcome,
    Refused: _encode_refused,
    Ping: _encode_ping,
    Pong: _encode_pong,
    Busy: _encode_busy,
    GroupNote: _encode_group_note,
    Parcel: _encode_parcel,
    ParcelRows: _encode_parcel_rows,
}
