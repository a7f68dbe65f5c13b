"""Words that every floor shares: ids, dtypes and versions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NewType

RankId = NewType("RankId", int)
ShardId = NewType("ShardId", int)

ComputeDtype = Literal["float32", "bfloat16"]
COMPUTE_DTYPES: tuple[ComputeDtype, ...] = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True, order=True)
class PlacementVersion:
    """(epoch, counter): epochs grow with each pool start, counters with each placement."""

    epoch: int
    counter: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.counter}"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a rank and a shard must agree about before one row travels.

    `model` identifies checkpoint and compute dtype (16 bytes); `bit_class` names backend,
    kernel version and instruction class, e.g. ``reference/torch-2.13``.
    """

    model: bytes
    bit_class: str

    @property
    def name(self) -> str:
        """Return the `system_fingerprint` of answers: equal ones mean equal bits for a seed."""
        return f"fp_{self.model.hex()}/{self.bit_class}"


@dataclass(frozen=True, slots=True)
class ShardSlice:
    """Shard `index` of `count`: which experts of every MoE layer it holds at first."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> ShardSlice:
        """Parse ``"2/4"`` (third of four). Raises ValueError with what is allowed."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 0 <= int(match[1]) < int(match[2]):
            raise ValueError(f"{text!r} is not INDEX/COUNT with 0 <= INDEX < COUNT, e.g. 0/4")
        return cls(int(match[1]), int(match[2]))

    def experts(self, num_experts: int) -> range:
        """Return the contiguous expert ids of this slice; sizes differ by at most one."""
        start = self.index * num_experts // self.count
        return range(start, (self.index + 1) * num_experts // self.count)
