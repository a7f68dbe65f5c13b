"""The page that a chaos run writes: what was done, where, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.report import Machine

PAGE = """# Chaos results

Written by `make chaos`. A server of its own on Ray: three shards, two copies of each expert, two
attention ranks, model `models/demo`. Mixed streams run all the time (greedy and seeded, `n` = 3,
penalties, stop strings, whole answers, chat, JSON schema; short and long prompts; log-probabilities
with each token). Each is held to the same request's undisturbed answer: every token, and every bit
of every log-probability. Events strike one after another at random moments; the next one waits
until `/ready` answers and the pool has settled.

- commit {commit}, {date}, {cores} × {cpu}, load average {load} at the start
- {minutes:.1f} minutes; `python -m tests.chaos.run --seed {seed}` replays requests and events
- {verdict}

{table}
**requests** were open between the event's begin and the next event; **failed**: of these, without
excuse; **excused**: the process that was killed held their socket (ingress and proxy alone), or
nobody listened until it was back; **unequal**: another token, text, log-probability or end than
undisturbed. **whole again**: from the event's end until `/ready` answers 200 and every process and
copy is there, the longest. **longest gap**: each stream's longest pause between two chunks in that
time; clients and server share the machine's cores.
"""


def document(table: str, machine: Machine, seed: int, minutes: float, wrong: Sequence[str]) -> str:
    """Return the page as Markdown."""
    verdict = "nothing failed, nothing changed" if not wrong else "; ".join(wrong)
    return PAGE.format(
        commit=machine.commit,
        date=machine.date,
        cores=machine.cores,
        cpu=machine.cpu,
        load=machine.load,
        minutes=minutes,
        seed=seed,
        verdict=verdict,
        table=table,
    )
