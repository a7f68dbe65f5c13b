"""Outputs under faults, compared with undisturbed ones: zero failed, every bit equal.

Driven from outside, over HTTP, against any OpenAI endpoint. The undisturbed outputs are taken one
request at a time; then the same requests run many at a time, first without faults, then with
faults at random moments. The seed that decides about requests, moments, faults and victims is
reported, and replays them.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from tests.chaos.faults import Fault, NoVictimError
from tests.chaos.outcome import Outcome, difference, run_request
from tests.chaos.workload import ChaosRequest

Golden = Mapping[str, Outcome]
"""Undisturbed outcomes by the request's name."""


@dataclass(frozen=True)
class Load:
    """How the endpoint is driven."""

    url: str
    requests: Sequence[ChaosRequest]
    concurrency: int = 16
    request_deadline_s: float = 120.0
    pause_after_failure_s: float = 1.0
    """A server that refuses at once is not to be stormed."""


@dataclass(frozen=True)
class Event:
    """A fault that struck."""

    fault: Fault
    began_s: float
    ended_s: float
    what: str
    whole_after_s: float
    """From the fault's end until the server was ready, and all of it there again."""


@dataclass(frozen=True)
class Schedule:
    """When faults strike."""

    seed: int
    num_faults: int
    for_s: float = float("inf")
    """No fault begins after so long, however few have struck."""
    pause_s: tuple[float, float] = (0.5, 3.0)
    """Shortest and longest time from a fault's end to the next."""
    settle_s: float = 60.0
    """How long the server may take to be whole again after a fault."""
    ready_path: str = "/ready"
    settled: Callable[[], bool] = lambda: True
    """What has to hold, besides `/ready`, before the next fault; may block."""
    on_event: Callable[[Event], None] = lambda event: None


@dataclass
class ChaosResult:
    """Everything that happened, compared with the undisturbed outcomes."""

    golden: Golden
    outcomes: list[Outcome] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def during(self, index: int) -> list[Outcome]:
        """Return requests that were open between an event and the next one."""
        began_s, until_s = self._span(index)
        return [o for o in self.outcomes if o.ended_s >= began_s and o.started_s < until_s]

    def gaps_during(self, index: int) -> list[float]:
        """Return each stream's longest gap whose middle lies between an event and the next one."""
        began_s, until_s = self._span(index)
        streams = [o for o in self.during(index) if o.failure is None]
        gaps = [o.longest_gap_s(began_s, until_s) for o in streams]
        return [gap for gap in gaps if gap > 0.0]

    def gaps(self) -> list[float]:
        """Return each stream's longest gap."""
        ended = [o for o in self.outcomes if o.failure is None and o.chunk_times_s]
        return [o.longest_gap_s() for o in ended]

    def _span(self, index: int) -> tuple[float, float]:
        later = self.events[index + 1 : index + 2]
        return self.events[index].began_s, later[0].began_s if later else float("inf")

    def excused(self) -> list[Outcome]:
        """Return failures that an event open at that time is excused for."""
        excused = []
        for index, event in enumerate(self.events):
            open_then = (o for o in self.during(index) if o.failure is not None)
            excused += [o for o in open_then if o.failure and o.failure.kind in event.fault.excused]
        return list({id(outcome): outcome for outcome in excused}.values())

    def failed(self) -> list[Outcome]:
        """Return requests that failed without excuse."""
        excused = {id(outcome) for outcome in self.excused()}
        return [o for o in self.outcomes if o.failure is not None and id(o) not in excused]

    def unequal(self) -> list[tuple[Outcome, str]]:
        """Return successful requests whose output differs, and how."""
        ended = (outcome for outcome in self.outcomes if outcome.failure is None)
        pairs = ((o, difference(self.golden[o.request.name], o)) for o in ended)
        return [(outcome, how) for outcome, how in pairs if how is not None]


async def undisturbed(load: Load) -> Golden:
    """Run each request alone. Raises RuntimeError when one fails."""
    golden: dict[str, Outcome] = {}
    for request in load.requests:
        outcome = await run_request(load.url, request, load.request_deadline_s)
        if outcome.failure is not None:
            raise RuntimeError(f"{request.name} fails undisturbed: {outcome.failure}")
        golden[request.name] = outcome
    return golden


def golden_differences(golden: Golden, other: Golden, name: str) -> list[str]:
    """Return in what the undisturbed outcomes of another server differ, one line each."""
    pairs = ((request, difference(golden[request], other[request])) for request in golden)
    return [f"{request} {name}: {how}" for request, how in pairs if how is not None]


async def crowded(load: Load, golden: Golden) -> ChaosResult:
    """Run each request once among others, without faults."""
    result = ChaosResult(golden)
    left = iter(load.requests)
    await _run_workers(load, result, lambda: next(left, None))
    return result


async def disturbed(
    load: Load, golden: Golden, faults: Sequence[Fault], schedule: Schedule
) -> ChaosResult:
    """Run the requests over and over until every fault has struck and settled.

    A fault without a victim, or a server that does not become ready again, ends the run by an
    exception; requests in flight are run to their end before that.
    """
    result = ChaosResult(golden)
    random = Random(schedule.seed)
    order = list(load.requests)
    random.shuffle(order)
    striking = asyncio.create_task(_strike_all(load.url, faults, schedule, random, result.events))
    endless = itertools.cycle(order)
    try:
        await _run_workers(load, result, lambda: None if striking.done() else next(endless))
        await striking
    finally:
        striking.cancel()
    return result


async def _run_workers(
    load: Load, result: ChaosResult, next_request: Callable[[], ChaosRequest | None]
) -> None:
    async def work() -> None:
        while (request := next_request()) is not None:
            outcome = await run_request(load.url, request, load.request_deadline_s)
            result.outcomes.append(outcome)
            if outcome.failure is not None:
                await asyncio.sleep(load.pause_after_failure_s)

    await asyncio.gather(*(work() for _ in range(load.concurrency)))


async def _strike_all(
    url: str, faults: Sequence[Fault], schedule: Schedule, random: Random, events: list[Event]
) -> None:
    until_s = time.monotonic() + schedule.for_s
    due: list[Fault] = []
    for _ in range(schedule.num_faults):
        await asyncio.sleep(random.uniform(*schedule.pause_s))
        if time.monotonic() > until_s:
            break
        # Each as often as any other, in an order of its own in every round.
        due = due or random.sample(faults, len(faults))
        events.append(await _strike(url, due.pop(), schedule, random))
        schedule.on_event(events[-1])
    await asyncio.sleep(schedule.pause_s[1])


async def _strike(url: str, fault: Fault, schedule: Schedule, random: Random) -> Event:
    began_s = time.monotonic()
    try:
        what = await fault.strike(random)
    except (NoVictimError, RuntimeError) as error:
        error.add_note(f"at event {fault.name!r}")
        raise
    ended_s = time.monotonic()
    until_s = ended_s + schedule.settle_s
    path = url + schedule.ready_path
    after = f"within {schedule.settle_s:g} s after {fault.name!r}"
    await _await(lambda: _answers(path), until_s, f"{path} has not answered 200 {after}")
    whole_s = await _await(schedule.settled, until_s, f"the server has not settled {after}")
    return Event(fault, began_s, ended_s, what, whole_s - ended_s)


async def _await(condition: Callable[[], bool], until_s: float, otherwise: str) -> float:
    """Return when `condition` came true. Raises RuntimeError when it does not in time."""
    while time.monotonic() < until_s:
        if await asyncio.to_thread(condition):
            return time.monotonic()
        await asyncio.sleep(0.02)
    raise RuntimeError(otherwise)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status) == 200
    except (urllib.error.URLError, OSError):
        return False
