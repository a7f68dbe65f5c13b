"""Faults made of others: one after another, or one in the middle of another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tests.chaos.faults import NOTHING_EXCUSED, Fault
from tests.chaos.outcome import FailureKind


@dataclass(frozen=True)
class InTurn:
    """Several faults, each after the one before it."""

    name: str
    steps: Sequence[Fault]
    excused: frozenset[FailureKind] = NOTHING_EXCUSED

    async def strike(self, random: Random) -> str:
        """See `Fault.strike`."""
        return ", ".join([await step.strike(random) for step in self.steps])


@dataclass(frozen=True)
class Meanwhile:
    """A short fault at a random moment of a long one."""

    name: str
    long: Fault
    short: Fault
    within_s: tuple[float, float] = (0.0, 2.0)
    excused: frozenset[FailureKind] = NOTHING_EXCUSED

    async def strike(self, random: Random) -> str:
        """See `Fault.strike`."""
        moment_s = random.uniform(*self.within_s)
        lasting = asyncio.create_task(self.long.strike(random))
        try:
            await asyncio.sleep(moment_s)
            struck = await self.short.strike(random)
            return f"{await lasting}; after {moment_s:.2f} s {struck}"
        finally:
            lasting.cancel()
