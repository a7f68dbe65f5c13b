"""Frames between attention ranks and expert shards, and their binary form.

A frame is a small fixed little-endian header and then contiguous arrays; it is decoded without
copying the arrays and without ever unpickling anything. What a frame means is for `router` and
`experts` to know. Layout and bounds: `cluster.wire.layout`.
"""

from cluster.wire.decode import decode, decode_apart
from cluster.wire.encode import Buffer, encode, encode_apart, encoded_bytes
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
    Parcel,
    ParcelRows,
    Ping,
    Pong,
    Refused,
    Welcome,
)
from cluster.wire.layout import DEFAULT_MAX_FRAME_BYTES, PREAMBLE_BYTES, PROTOCOL_VERSION

__all__ = [
    "DEFAULT_MAX_FRAME_BYTES",
    "PREAMBLE_BYTES",
    "PROTOCOL_VERSION",
    "Buffer",
    "Busy",
    "CallError",
    "CallId",
    "ExpertCall",
    "ExpertReply",
    "Frame",
    "GroupNote",
    "GroupVerb",
    "Hello",
    "Parcel",
    "ParcelRows",
    "Ping",
    "Pong",
    "Refused",
    "Welcome",
    "decode",
    "decode_apart",
    "encode",
    "encode_apart",
    "encoded_bytes",
]
