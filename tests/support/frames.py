"""Frames for tests of wire and transports, and how to tell whether two are the same."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cluster.types import Fingerprint, PlacementVersion
from cluster.wire import (
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
    encode_apart,
)

FINGERPRINT = Fingerprint(b"sixteen bytes ok", "reference/1/float32")
VERSION = PlacementVersion(7, 2**40)
CALL_ID = CallId(rank=3, incarnation=2**60, step=2**33, micro_batch=1, layer=53, attempt=2)
HELLO = Hello(FINGERPRINT, rank=3, incarnation=9, epoch=1, token="sésame")


def a_call(
    num_tokens: int = 3,
    experts: tuple[int, ...] = (5, 7, 250),
    *,
    call_id: CallId = CALL_ID,
    width: int = 8,
    dtype: torch.dtype = torch.bfloat16,
) -> ExpertCall:
    """A call in which every expert gets every token."""
    rows = torch.randn(num_tokens, width, generator=torch.Generator().manual_seed(num_tokens))
    return ExpertCall(
        call_id,
        FINGERPRINT.model,
        VERSION,
        budget_us=1_500_000,
        expert_ids_G=np.array(experts, np.int32),
        row_offsets_G1=np.arange(len(experts) + 1, dtype=np.int32) * num_tokens,
        token_idx_N=np.tile(np.arange(num_tokens, dtype=np.int32), len(experts)),
        hidden_TD=rows.to(dtype),
    )


def a_reply(
    num_rows: int = 4,
    width: int = 8,
    *,
    call_id: CallId = CALL_ID,
    dtype: torch.dtype = torch.float32,
) -> ExpertReply:
    """A reply with random rows."""
    rows = torch.randn(num_rows, width, generator=torch.Generator().manual_seed(num_rows))
    return ExpertReply(call_id, 2**47, VERSION, rows.to(dtype), queue_us=12, compute_us=345)


def one_of_each() -> list[Frame]:
    """Every kind of frame."""
    return [
        a_call(),
        a_reply(),
        CallError(CALL_ID, "expert_not_held", "shard 2 does not hold expert 9 · größer", VERSION),
        HELLO,
        Welcome(2, 2**47, VERSION),
        Refused("wrong_model", "no"),
        Ping(1),
        Pong(2**63),
        Busy(2_000_000),
    ]


def about_groups() -> list[Frame]:
    """What the two ends of a collective link say to each other about their group."""
    head, rows_B = encode_apart(a_reply())
    return [
        GroupNote(GroupVerb.OFFER, 1, 2**16, "gloo", b"127.0.0.1"),
        GroupNote(GroupVerb.STORE, 1, 0, "0/1", b"\0\xff" * 85),
        GroupNote(GroupVerb.READY, 2**31, 2**28),
        GroupNote(GroupVerb.DROP, 7, 2**60, "größer"),
        Parcel(3, 2**40, 12, len(rows_B), head),
        ParcelRows(3, 2**40, rows_B),
    ]


def same(left: object, right: object) -> bool:
    """Whether two frames are equal, tensors and arrays bit for bit."""
    if isinstance(left, ExpertCall) and isinstance(right, ExpertCall):
        return all(_equal(getattr(left, name), getattr(right, name)) for name in left.__slots__)
    if isinstance(left, ExpertReply) and isinstance(right, ExpertReply):
        return all(_equal(getattr(left, name), getattr(right, name)) for name in left.__slots__)
    if isinstance(left, ParcelRows) and isinstance(right, ParcelRows):
        return all(_equal(getattr(left, name), getattr(right, name)) for name in left.__slots__)
    if isinstance(left, Parcel) and isinstance(right, Parcel):
        return all(getattr(left, name) == getattr(right, name) for name in left.__slots__)
    return left == right


def _equal(left: object, right: object) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right)
    return left == right
