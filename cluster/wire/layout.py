"""Byte layout of frames: preamble, one fixed header per kind, then the payload.

The preamble (24 bytes) keeps its layout in every protocol version, so that a peer of another
version is told so rather than misread. All structs are little-endian and a multiple of 8 bytes;
arrays follow each other in the payload, each padded to 8 bytes.
"""

from __future__ import annotations

import struct
from typing import Final

import torch

MAGIC: Final = b"TRNW"
PROTOCOL_VERSION: Final = 2

PREAMBLE: Final = struct.Struct("<4sHBBIIII")
"""magic, protocol version, kind, flags (0), header bytes, payload bytes, checksum, reserved (0).

The checksum covers the first 16 bytes of the preamble, the header and the payload.
"""
PREAMBLE_BYTES: Final = PREAMBLE.size
CHECKED_PREAMBLE: Final = struct.Struct("<4sHBBII")

KIND_CALL: Final = 1
KIND_REPLY: Final = 2
KIND_CALL_ERROR: Final = 3
KIND_HELLO: Final = 4
KIND_WELCOME: Final = 5
KIND_REFUSED: Final = 6
KIND_PING: Final = 7
KIND_PONG: Final = 8
KIND_BUSY: Final = 9
KIND_GROUP_NOTE: Final = 10
KIND_PARCEL: Final = 11
KIND_PARCEL_ROWS: Final = 12

FLAG_ROWS_UNCHECKED: Final = 1
"""The checksum leaves out the rows: they are on a device, and the host does not wait for them.

Only for the head in a `Parcel`: no frame by itself may have it."""

# The identity opens three headers: rank, micro-batch, layer, attempt, incarnation, step.
_CALL_ID = "IHHI4xQQ"

CALL: Final = struct.Struct("<" + _CALL_ID + "16sQQQBB2xIIII4x")
"""identity, model, epoch, counter, budget_us, dtype, scale_mode, G, N, T, D."""
REPLY: Final = struct.Struct("<" + _CALL_ID + "QQQQQB3xII4x")
"""identity, shard incarnation, epoch, counter, queue_us, compute_us, dtype, N, D."""
CALL_ERROR: Final = struct.Struct("<" + _CALL_ID + "QQHH4x")
"""identity, epoch, counter, bytes of code, bytes of message."""
HELLO: Final = struct.Struct("<16sI4xQQHH4x")
"""model, rank, incarnation, epoch, bytes of bit class, bytes of token."""
WELCOME: Final = struct.Struct("<I4xQQQ")
"""shard id, incarnation, epoch, counter."""
REFUSED: Final = struct.Struct("<HH4x")
"""bytes of code, bytes of message."""
NUMBER: Final = struct.Struct("<Q")
"""nonce of Ping and Pong, for_us of Busy."""
GROUP_NOTE: Final = struct.Struct("<B3xIQHHI")
"""verb, generation, number, bytes of text, 0, bytes of data."""
PARCEL: Final = struct.Struct("<I4xQQQ")
"""generation, sequence, exchanges received, bytes of rows; the payload is the frame's head."""
PARCEL_ROWS: Final = struct.Struct("<I4xQ")
"""generation, sequence; the payload is the rows."""

SCALE_MODE_NONE: Final = 0
"""The only scale mode so far: rows travel in compute dtype, without scales."""

DTYPE_CODES: Final[dict[torch.dtype, int]] = {torch.float32: 0, torch.bfloat16: 1}
DTYPES: Final = tuple(DTYPE_CODES)
ITEM_BYTES: Final = tuple(dtype.itemsize for dtype in DTYPES)

# A prefill chunk of 8,192 tokens of width 3072 in bf16 whose 4 experts are all on one shard comes
# back as 192 MiB; anything larger is a mistake or an attack.
DEFAULT_MAX_FRAME_BYTES: Final = 256 * 2**20
MAX_ROWS: Final = 2**20
MAX_WIDTH: Final = 2**16
MAX_EXPERTS: Final = 2**16
MAX_GROUPS: Final = 2**12
MAX_TEXT_BYTES: Final = 4096
MAX_STORE_BYTES: Final = 2**16
"""Of one value in a group's store; addresses of a pair of processes take 170."""


def padded(num_bytes: int) -> int:
    """Round up to the 8-byte grid of arrays."""
    return (num_bytes + 7) & ~7
