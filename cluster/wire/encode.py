"""Frames to bytes: one small head, and the rows as they lie in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

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
    Hello,
    Ping,
    Pong,
    Refused,
    Welcome,
)

Buffer = bytes | memoryview
_PADS: Final = tuple(b"\0" * size for size in range(8))


def encode(frame: Frame) -> list[Buffer]:
    """Return the frame's bytes in one or two buffers: head, and rows (not copied).

    The rows' buffer aliases the frame's tensor, which must not change until the bytes are sent.
    """
    return _ENCODERS[type(frame)](frame)


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
    return flat.numpy().data


def _sealed(kind: int, header: bytes, head: bytes, rows: memoryview | None = None) -> list[Buffer]:
    """Put the preamble with sizes and checksum before header, small payload `head` and `rows`."""
    payload_bytes = len(head) + (len(rows) if rows is not None else 0)
    checked = layout.CHECKED_PREAMBLE.pack(
        layout.MAGIC, layout.PROTOCOL_VERSION, kind, 0, len(header), payload_bytes
    )
    body = header + head
    parts = (checked, body) if rows is None else (checked, body, rows)
    total = checksum(*parts).to_bytes(4, "little")
    frame = b"".join((checked, total, _PADS[4], body))
    return [frame] if rows is None else [frame, rows]


def _encode_call(frame: ExpertCall) -> list[Buffer]:
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
    return _sealed(layout.KIND_CALL, header, head, _rows_view(frame.hidden_TD))


def _encode_reply(frame: ExpertReply) -> list[Buffer]:
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
    return _sealed(layout.KIND_REPLY, header, b"", _rows_view(frame.rows_ND))


def _text(text: str) -> bytes:
    """UTF-8, cut to the bound at a character's edge."""
    data = text.encode("utf-8", "replace")
    if len(data) <= layout.MAX_TEXT_BYTES:
        return data
    return data[: layout.MAX_TEXT_BYTES].decode("utf-8", "ignore").encode()


def _encode_call_error(frame: CallError) -> list[Buffer]:
    code, message = _text(frame.code), _text(frame.message)
    version = frame.placement_version
    header = layout.CALL_ERROR.pack(
        *_id_fields(frame.call_id), version.epoch, version.counter, len(code), len(message)
    )
    return _sealed(layout.KIND_CALL_ERROR, header, code + message)


def _encode_hello(frame: Hello) -> list[Buffer]:
    bit_class, token = _text(frame.fingerprint.bit_class), _text(frame.token)
    header = layout.HELLO.pack(
        frame.fingerprint.model,
        frame.rank,
        frame.incarnation,
        frame.epoch,
        len(bit_class),
        len(token),
    )
    return _sealed(layout.KIND_HELLO, header, bit_class + token)


def _encode_welcome(frame: Welcome) -> list[Buffer]:
    version = frame.placement_version
    header = layout.WELCOME.pack(frame.shard_id, frame.incarnation, version.epoch, version.counter)
    return _sealed(layout.KIND_WELCOME, header, b"")


def _encode_refused(frame: Refused) -> list[Buffer]:
    code, message = _text(frame.code), _text(frame.message)
    header = layout.REFUSED.pack(len(code), len(message))
    return _sealed(layout.KIND_REFUSED, header, code + message)


def _encode_ping(frame: Ping) -> list[Buffer]:
    return _sealed(layout.KIND_PING, layout.NUMBER.pack(frame.nonce), b"")


def _encode_pong(frame: Pong) -> list[Buffer]:
    return _sealed(layout.KIND_PONG, layout.NUMBER.pack(frame.nonce), b"")


def _encode_busy(frame: Busy) -> list[Buffer]:
    return _sealed(layout.KIND_BUSY, layout.NUMBER.pack(frame.for_us), b"")


# Each encoder takes the one type it is registered for, which the dict's type cannot say.
_ENCODERS: Final[dict[type, Callable[..., list[Buffer]]]] = {
    ExpertCall: _encode_call,
    ExpertReply: _encode_reply,
    CallError: _encode_call_error,
    Hello: _encode_hello,
    Welcome: _encode_welcome,
    Refused: _encode_refused,
    Ping: _encode_ping,
    Pong: _encode_pong,
    Busy: _encode_busy,
}
