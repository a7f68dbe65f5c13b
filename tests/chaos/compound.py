"""Faults made of others: one after another, or one in the middle of another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from tests.chaos.faults import NOTHING_EXCUSED, Fault, NoVictimError
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


Moment = Callable[[], Callable[[], bool]]
"""Takes note of how things are, and returns whether the moment has come since; may block."""


@dataclass(frozen=True)
class AtMoment:
    """A short fault at a moment of a long one that is watched for."""

    name: str
    long: Fault
    moment: Moment
    short: Fault
    within_s: float = 30.0
    excused: frozenset[FailureKind] = NOTHING_EXCUSED

    async def strike(self, random: Random) -> str:
        """See `Fault.strike`. Raises NoVictimError when the moment does not come."""
        has_come = await asyncio.to_thread(self.moment)
        until_s = time.monotonic() + self.within_s
        lasting = asyncio.create_task(self.long.strike(random))
        try:
            while not await asyncio.to_thread(has_come):
                if time.monotonic() > until_s or lasting.done():
                    raise NoVictimError(f"the moment did not come in {self.within_s:g} s")
                await asyncio.sleep(0.005)
            struck = await self.short.strike(random)
            return f"{await lasting}; meanwhile {struck}"
        finally:
            lasting.cancel()
