"""What can travel between a rank and a shard.

T tokens of the call, D hidden width, N rows ((token, expert) pairs), G groups (experts hit).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cluster.types import Fingerprint, PlacementVersion

Int32 = npt.NDArray[np.int32]


class CallId(NamedTuple):
    """Identity of one attempt at one call; a reply is matched by all of it.

    A late answer to attempt n therefore never lands in attempt n + 1. A tuple rather than a
    dataclass because it is made, hashed and compared for every frame.
    """

    rank: int
    incarnation: int
    step: int
    micro_batch: int
    layer: int
    """MoE layer index: 0 is the first layer with experts."""
    attempt: int


@dataclass(frozen=True, slots=True, eq=False)
class ExpertCall:
    """Rows for the experts of one layer on one shard; every token travels once.

    Group g asks expert `expert_ids_G[g]` for rows row_offsets_G1[g] … row_offsets_G1[g+1]-1, and
    row n reads token `token_idx_N[n]` of `hidden_TD` (compute dtype). G = 0 means that the rank
    has no rows for this shard in this layer: it only says where the rank stands.
    """

    call_id: CallId
    model: bytes
    """16 bytes: `Fingerprint.model` of the rank."""
    placement_version: PlacementVersion
    budget_us: int
    """Time the rank is prepared to wait from sending on."""
    expert_ids_G: Int32
    row_offsets_G1: Int32
    token_idx_N: Int32
    hidden_TD: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ExpertReply:
    """One un-reduced row per row asked, in the order of the call, in compute dtype."""

    call_id: CallId
    shard_incarnation: int
    placement_version: PlacementVersion
    rows_ND: Tensor
    queue_us: int
    compute_us: int


@dataclass(frozen=True, slots=True)
class CallError:
    """The shard did not compute the call: `code` is a `TrinityError.code`."""

    call_id: CallId
    code: str
    message: str
    placement_version: PlacementVersion


@dataclass(frozen=True, slots=True)
class Hello:
    """First frame of a rank on a new link."""

    fingerprint: Fingerprint
    rank: int
    incarnation: int
    epoch: int
    token: str


@dataclass(frozen=True, slots=True)
class Welcome:
    """The shard accepts the rank."""

    shard_id: int
    incarnation: int
    placement_version: PlacementVersion


@dataclass(frozen=True, slots=True)
class Refused:
    """The shard does not accept the rank, or could not read a frame whose call is unknown."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks the peer's compute loop for a sign of life."""

    nonce: int


@dataclass(frozen=True, slots=True)
class Pong:
    """Answers a `Ping` of the same nonce."""

    nonce: int


@dataclass(frozen=True, slots=True)
class Busy:
    """The peer's compute loop will be silent for up to `for_us`: busy, not dead."""

    for_us: int


class GroupVerb(IntEnum):
    """What a `GroupNote` says."""

    OFFER = 1
    """The rank proposes a group: `text` its backend, `data` where the rank is, `number` from how
    many bytes on rows go by it."""
    STORE = 2
    """While a group is built: the key `text` of its store has the value `data`."""
    READY = 3
    """This end is built and has been tried; it takes frames of up to `number` bytes."""
    ACK = 4
    """`number` exchanges of the group have been received."""
    DROP = 5
    """This end uses the group no more; it has received `number` exchanges, and `text` says why."""


@dataclass(frozen=True, slots=True)
class GroupNote:
    """Between the two ends of a collective link, about one generation of their group."""

    verb: GroupVerb
    generation: int
    number: int = 0
    text: str = ""
    data: bytes = b""


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """A frame without its rows, which go by a group: as exchange `sequence` of this direction."""

    generation: int
    sequence: int
    num_received: int
    """Exchanges of the other direction that have come so far."""
    rows_bytes: int
    head: bytes | memoryview
    """The frame's bytes up to its rows, as `encode_apart` gives them."""


@dataclass(frozen=True, slots=True, eq=False)
class ParcelRows:
    """Rows of an exchange whose group was dropped before they had come."""

    generation: int
    sequence: int
    rows_B: Tensor
    """Bytes, one-dimensional."""


Frame = (
    ExpertCall
    | ExpertReply
    | CallError
    | Hello
    | Welcome
    | Refused
    | Ping
    | Pong
    | Busy
    | GroupNote
    | Parcel
    | ParcelRows
)
