"""Chaos from the command line, against any OpenAI endpoint.

    python -m tests.chaos.run --serve '--model models/demo --mode local --shards 4' \\
        --kill 'shard killed=ExpertShard' --freeze 'shard silent=ExpertShard:10' --faults 20

    python -m tests.chaos.run --url http://127.0.0.1:8000 --pid 4711 --kill 'worker=EngineCore'

Exit code 1 when a request has failed or an output has changed. The table goes to stdout and, with
--out, to a file under a line with commit, seed and hardware.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from tests.bench.report import Machine
from tests.bench.serving_load import served_model
from tests.chaos.faults import Command, Fault, Freeze, Kill, VanishingClients, Victims
from tests.chaos.footprint import Footprint
from tests.chaos.harness import ChaosResult, Load, Schedule, crowded, disturbed, undisturbed
from tests.chaos.table import complaints, table
from tests.chaos.workload import KINDS, ChaosRequest, Sizes, mixed_requests
from tests.support.server import trinity_server


def faults_of(options: argparse.Namespace, url: str, pid: int, vanish: ChaosRequest) -> list[Fault]:
    """Return the faults that the command line names."""
    faults: list[Fault] = []
    for name, pattern in options.kill:
        faults.append(Kill(name, Victims(pid, pattern)))
    for name, text in options.freeze:
        pattern, _, seconds = text.rpartition(":")
        faults.append(Freeze(name, Victims(pid, pattern), float(seconds)))
    for name, words in options.run:
        faults.append(Command(name, tuple(shlex.split(words))))
    if options.vanish:
        faults.append(VanishingClients("clients vanish", url, vanish, options.vanish))
    return faults


async def run(options: argparse.Namespace, url: str, pid: int) -> tuple[ChaosResult, ChaosResult]:
    """Run golden, crowd and chaos."""
    model = options.model or served_model(url)
    sizes = Sizes(vocab_size=options.vocab_size)
    requests = mixed_requests(model, options.requests, options.seed, options.kinds, sizes)
    faults = faults_of(options, url, pid, requests[0])
    load = Load(url, requests, options.concurrency, options.deadline)
    golden = await undisturbed(load)
    crowd = await crowded(load, golden)
    schedule = Schedule(options.seed, options.faults if faults else 0, ready_path=options.ready)
    return crowd, await disturbed(load, golden, faults, schedule)


@contextmanager
def endpoint(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Yield URL and process id of the server: a running one, or one started for this."""
    if options.url:
        yield options.url.rstrip("/"), options.pid
        return
    with trinity_server(shlex.split(options.serve)) as server:
        yield server.url, server.process.pid


def named(text: str) -> tuple[str, str]:
    """Parse NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="a running endpoint")
    where.add_argument("--serve", metavar="OPTIONS", help="start `trinity serve OPTIONS` for this")
    parser.add_argument("--pid", type=int, default=0, help="process whose children may be hit")
    parser.add_argument("--model", help="[default: the first that is served]")
    parser.add_argument("--ready", default="/ready", help="path that answers 200 when it serves")
    for option in ("--kill", "--freeze", "--run"):
        parser.add_argument(option, type=named, action="append", default=[], metavar="NAME=WHAT")
    parser.add_argument("--vanish", type=int, default=0, metavar="CLIENTS")
    parser.add_argument("--faults", type=int, default=10, help="how many strike")
    parser.add_argument("--requests", type=int, default=48, help="different ones")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--vocab-size", type=int, default=Sizes.vocab_size)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--deadline", type=float, default=120.0, help="seconds for one request")
    parser.add_argument("--seed", type=int, default=secrets.randbits(31))
    parser.add_argument("--out", type=Path, help="Markdown file to write the table to")
    options = parser.parse_args(arguments)
    if (options.kill or options.freeze) and options.url and not options.pid:
        parser.error("--kill and --freeze need --pid: only processes below it are hit")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return the exit code."""
    options = parse(arguments)
    print(f"--seed {options.seed} replays this run", file=sys.stderr)
    machine = Machine.here()
    with endpoint(options) as (url, pid):
        before = Footprint.of(pid) if pid else None
        crowd, chaos = asyncio.run(run(options, url, pid))
        after = Footprint.of(pid) if pid else None
    for index, event in enumerate(chaos.events):
        print(f"{index}: {event.fault.name}: {event.what}", file=sys.stderr)
    for label, held in (("before", before), ("after", after)):
        if held is not None:
            print(json.dumps({"footprint": label, **asdict(held)}), file=sys.stderr)
    text = table(crowd, chaos)
    print(text)
    if options.out:
        head = f"commit {machine.commit}, {machine.date}, {machine.cores} × {machine.cpu}"
        options.out.write_text(f"{head}, seed {options.seed}\n\n{text}", encoding="utf8")
    wrong = [*complaints(crowd), *complaints(chaos)]
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
