"""The page that a chaos run writes: what was done, where, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.report import Machine

NAMES = {"unix": "Unix sockets", "grpc": "gRPC"}

PAGE = """# Chaos results

Written by `make chaos`. A server of its own on Ray: three shards, two copies of each expert, two
attention ranks, model `models/demo`, {transport} between ranks and shards. Mixed streams run all
the time (greedy and seeded, `n` = 3, penalties, stop strings, whole answers, chat, JSON schema;
short and long prompts; log-probabilities with each token). Each is held to the same request's
undisturbed answer: every token, and every bit of every log-probability.{compared} Events strike one
after another at random moments; the next one waits until `/ready` answers and the pool has settled.

Processes are killed and stopped by signals. A kill at a join hits when an added process has just
appeared, one at a publish when a placement is out that not every rank has yet. Frames and
connections are spoilt by a proxy in the place of the socket of a shard whose predecessor was killed
for it: bytes changed, halves missing, replies twice, out of order, late or with NaN under a right
checksum; the connection reset, or open and dead. Two shards gone beyond the grace uncover experts
for longer than `coverage_grace_s`.

- commit {commit}, {date}, {cores} × {cpu}, load average {load} at the start
- {minutes:.1f} minutes; `python -m tests.chaos.run --seed {seed}` replays requests and events
- {verdict}

{table}
**requests** were open between the event's begin and the next event; **failed**: of these, without
excuse; **excused**: the process that was killed held their socket (ingress and proxy alone), nobody
listened until it was back, or experts were gone beyond the grace and the answer was a typed 503
with Retry-After, or the same as an error event; **unequal**: another token, text, log-probability
or end than undisturbed. **whole again**: from the event's end until `/ready` answers 200 and every
process and copy is there, the longest. **longest gap**: each stream's longest pause between two
chunks in that time; clients and server share the machine's cores.
"""


@dataclass(frozen=True)
class Story:
    """What a run was told and has found."""

    seed: int
    minutes: float
    transport: str
    compared: Sequence[str]
    """Transports whose undisturbed outputs had to be the same."""
    wrong: Sequence[str]


def document(table: str, machine: Machine, story: Story) -> str:
    """Return the page as Markdown."""
    others = " and ".join(NAMES[name] for name in story.compared)
    held = f"\nUndisturbed answers over {others} had to be the same ones." if others else ""
    return PAGE.format(
        commit=machine.commit,
        date=machine.date,
        cores=machine.cores,
        cpu=machine.cpu,
        load=machine.load,
        minutes=story.minutes,
        seed=story.seed,
        transport=NAMES[story.transport],
        compared=held,
        verdict="; ".join(story.wrong) or "nothing failed, nothing changed",
        table=table,
    )
