"""Chaos from the command line: our own server on Ray, or any OpenAI endpoint.

    python -m tests.chaos.run --minutes 10                       # our server, every event
    python -m tests.chaos.run --events 'shard killed' --seed 7   # one kind of event, replayed
    python -m tests.chaos.run --url http://127.0.0.1:8000 --pid 4711 --kill 'worker=EngineCore'

Exit code 1 when a request has failed, an output has changed, something is still held at the end,
or, with --flat, memory, files or threads have grown. The table goes to stdout and, with --out, to
a file with commit, seed and hardware.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from tests.bench.report import Machine
from tests.bench.serving_load import served_model
from tests.chaos.clients import VanishingClients
from tests.chaos.control_service import RestartControlService
from tests.chaos.document import Story, document
from tests.chaos.events import events_for
from tests.chaos.faults import Command, Fault, Freeze, Kill, Victims
from tests.chaos.footprint import FootprintWatch
from tests.chaos.harness import (
    ChaosResult,
    Golden,
    Load,
    Schedule,
    crowded,
    disturbed,
    golden_differences,
    undisturbed,
)
from tests.chaos.options import parse
from tests.chaos.own_server import endpoint
from tests.chaos.table import complaints, table
from tests.chaos.target import CONTROL_SERVICE as GCS
from tests.chaos.target import Target
from tests.chaos.workload import ChaosRequest, Sizes, endless_request, mixed_requests

FREE_WITHIN_S = 5.0
"""After the last client has gone, nothing it held is held any more."""


@dataclass
class Found:
    """What a run has to say."""

    crowd: ChaosResult
    chaos: ChaosResult
    wrong: list[str] = field(default_factory=list)


def faults_of(
    options: argparse.Namespace, target: Target, misused: ChaosRequest, at_the_end: ExitStack
) -> list[Fault]:
    """Return the faults that the command line names; badly behaved clients send `misused`.

    `at_the_end` is closed when the server has ended.
    """
    faults = events_for(options.events, target, misused)
    if options.control_service:
        away = RestartControlService("control service away", Victims(target.pid, GCS))
        at_the_end.callback(away.close)
        faults.append(away)
    for name, pattern in options.kill:
        faults.append(Kill(name, Victims(target.pid, pattern)))
    for name, text in options.freeze:
        pattern, _, seconds = text.rpartition(":")
        faults.append(Freeze(name, Victims(target.pid, pattern), float(seconds)))
    for name, words in options.run:
        faults.append(Command(name, tuple(shlex.split(words))))
    if options.vanish:
        faults.append(VanishingClients("clients vanish", target.url, misused, options.vanish))
    return faults


def schedule_of(options: argparse.Namespace, num_kinds: int, target: Target) -> Schedule:
    """Return when faults strike."""
    settled = target.settled if options.events else lambda: True
    for_s = 60 * options.minutes if options.minutes else float("inf")
    count = 10_000_000 if options.minutes else options.faults or 2 * num_kinds
    return Schedule(
        options.seed,
        count if num_kinds else 0,
        for_s,
        ready_path=options.ready,
        settled=settled,
        on_event=lambda event: say(f"{event.fault.name}: {event.what}"),
    )


def say(text: str) -> None:
    """Show progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def load_of(options: argparse.Namespace, target: Target) -> Load:
    """Return the mixed requests that the options ask for."""
    model = options.model or served_model(target.url)
    sizes = Sizes(vocab_size=options.vocab_size)
    requests = mixed_requests(model, options.requests, options.seed, options.kinds, sizes)
    return Load(target.url, requests, options.concurrency, options.deadline)


def golden_over(options: argparse.Namespace, transport: str) -> Golden:
    """Return the undisturbed outputs of a server of its own, whose links are of this kind.

    None at all when it does not serve, which `compared` complains about.
    """
    try:
        with endpoint(options, transport) as target:
            golden = asyncio.run(undisturbed(load_of(options, target)))
    except RuntimeError as error:
        say(f"over {transport}: {error}")
        return {}
    say(f"{len(golden)} undisturbed outputs over {transport}")
    return golden


def compared(golden: Golden, others: Mapping[str, Golden]) -> list[str]:
    """Return in what outputs over other transports differ, one line each."""
    lines: list[str] = []
    for name, other in others.items():
        if not other:
            lines.append(f"no undisturbed outputs over {name}")
        else:
            lines += golden_differences(golden, other, f"over {name}")
    return lines[:10]


async def run(
    options: argparse.Namespace,
    target: Target,
    others: Mapping[str, Golden],
    at_the_end: ExitStack,
) -> Found:
    """Run golden, crowd and chaos; compare with the undisturbed outputs of others."""
    load = load_of(options, target)
    misused = endless_request(options.model or served_model(target.url))
    faults = faults_of(options, target, misused, at_the_end)
    golden = await undisturbed(load)
    wrong = compared(golden, others)
    crowd = await crowded(load, golden)
    schedule = schedule_of(options, len(faults), target)
    async with FootprintWatch(target.pid) as watch:
        chaos = await disturbed(load, golden, faults, schedule)
    found = Found(crowd, chaos, [*wrong, *complaints(crowd), *complaints(chaos)])
    if options.flat:
        say(watch.summary())
        found.wrong += watch.growths()
    if options.events:
        found.wrong += await _still_held(target)
    return found


async def _still_held(target: Target) -> list[str]:
    until_s = time.monotonic() + FREE_WITHIN_S
    while time.monotonic() < until_s:
        if await asyncio.to_thread(target.holds_nothing):
            return []
        await asyncio.sleep(0.1)
    return [f"{FREE_WITHIN_S:g} s after the last request these are held: {target.held()}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return the exit code."""
    options = parse(__doc__, arguments)
    say(f"--seed {options.seed} replays this run")
    machine, began_s = Machine.here(), time.monotonic()
    others = {name: golden_over(options, name) for name in options.compare}
    with ExitStack() as at_the_end, endpoint(options, options.transport) as target:
        found = asyncio.run(run(options, target, others, at_the_end))
    text = table(found.crowd, found.chaos)
    print(text)
    if options.out:
        minutes = (time.monotonic() - began_s) / 60
        story = Story(options.seed, minutes, options.transport, options.compare, found.wrong)
        page = document(text, machine, story)
        options.out.write_text(page, encoding="utf8")
    for line in found.wrong:
        print(line, file=sys.stderr)
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
