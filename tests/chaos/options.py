"""The command line of a chaos run."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.events import EVENTS, possible_events
from tests.chaos.workload import KINDS, Sizes

TRANSPORTS = ("unix", "grpc")
OUR_SERVER = "--model models/demo --kv-memory 64MiB"


def named(text: str) -> tuple[str, str]:
    """Parse NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def parse(description: str | None, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; `events` are all of them where our own server is started."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_server(parser)
    _add_faults(parser)
    _add_load(parser)
    parser.add_argument("--flat", action="store_true", help="memory, files, threads must not grow")
    parser.add_argument("--out", type=Path, help="Markdown file to write the results to")
    options = parser.parse_args(arguments)
    if (options.kill or options.freeze) and options.url and not options.pid:
        parser.error("--kill and --freeze need --pid: only processes below it are hit")
    own = (options.kill, options.freeze, options.run, options.vanish, options.control_service)
    every = options.events is None and not options.url and not any(own)
    if options.events is None:
        options.events = possible_events(options.transport) if every else []
    if impossible := set(options.events) - set(possible_events(options.transport)):
        parser.error(f"not over --transport {options.transport}: {', '.join(sorted(impossible))}")
    if options.compare is None:
        options.compare = [each for each in TRANSPORTS if every and each != options.transport]
    return options


def _add_server(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="a running endpoint; without it our own server is started")
    where.add_argument(
        "--serve", metavar="OPTIONS", default=OUR_SERVER, help="of our own  [default: %(default)s]"
    )
    parser.add_argument(
        "--transport", choices=TRANSPORTS, default="unix",
        help="of our own, between ranks and shards  [default: %(default)s]",
    )  # fmt: skip
    parser.add_argument(
        "--compare", choices=TRANSPORTS, nargs="*", metavar="TRANSPORT",
        help="whose undisturbed outputs have to be the same  [with all events: the other]",
    )  # fmt: skip
    parser.add_argument("--pid", type=int, default=0, help="process whose children may be hit")
    parser.add_argument("--model", help="[default: the first that is served]")
    parser.add_argument("--ready", default="/ready", help="path that answers 200 when it serves")


def _add_faults(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--events", nargs="+", choices=list(EVENTS), metavar="EVENT",
        help="of our server  [default: all]: " + "; ".join(EVENTS),
    )  # fmt: skip
    for option in ("--kill", "--freeze", "--run"):
        parser.add_argument(option, type=named, action="append", default=[], metavar="NAME=WHAT")
    parser.add_argument(
        "--control-service", action="store_true",
        help="kill Ray's too, with its state on disk, and start it again (our own server only)",
    )  # fmt: skip
    parser.add_argument("--vanish", type=int, default=0, metavar="CLIENTS")
    how_long = parser.add_mutually_exclusive_group()
    how_long.add_argument("--faults", type=int, help="how many strike  [default: each kind twice]")
    how_long.add_argument("--minutes", type=float, help="faults strike for so long")
    parser.add_argument("--seed", type=int, default=secrets.randbits(31))


def _add_load(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=48, help="different ones")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--vocab-size", type=int, default=Sizes.vocab_size)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--deadline", type=float, default=120.0, help="seconds for one request")
