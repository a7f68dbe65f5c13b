"""Results of chaos runs as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tests.chaos.harness import ChaosResult
from tests.chaos.outcome import Outcome

HEAD = (
    "| event | times | requests | failed | excused | unequal | whole again, max (s) "
    "| longest gap p50 | p99 | max (ms) |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


def table(crowd: ChaosResult, chaos: ChaosResult) -> str:
    """Return a line without faults, one per kind of fault, and one for all of them.

    A request open during several events counts in the line of each, and once in the last line.
    """
    lines = [*HEAD, _line(Row("none", crowd.outcomes, crowd.gaps()), crowd)]
    for name in sorted({event.fault.name for event in chaos.events}):
        lines.append(_line(_row_of(name, chaos), chaos))
    whole_s = max((event.whole_after_s for event in chaos.events), default=0.0)
    every = Row("all", chaos.outcomes, chaos.gaps(), len(chaos.events), whole_s)
    return "\n".join([*lines, _line(every, chaos)]) + "\n"


@dataclass(frozen=True)
class Row:
    """What one line is about."""

    name: str
    outcomes: Sequence[Outcome]
    gaps_s: Sequence[float]
    times: int = 0
    whole_s: float | None = None


def _row_of(name: str, chaos: ChaosResult) -> Row:
    indices = [i for i, event in enumerate(chaos.events) if event.fault.name == name]
    open_then = {id(o): o for index in indices for o in chaos.during(index)}
    gaps_s = [gap for index in indices for gap in chaos.gaps_during(index)]
    whole_s = max(chaos.events[index].whole_after_s for index in indices)
    return Row(name, list(open_then.values()), gaps_s, len(indices), whole_s)


def _line(row: Row, result: ChaosResult) -> str:
    def among(some: Sequence[Outcome]) -> int:
        return len({id(outcome) for outcome in some} & {id(outcome) for outcome in row.outcomes})

    cells = [
        row.name,
        str(row.times or "–"),
        str(len(row.outcomes)),
        str(among(result.failed())),
        str(among(result.excused())),
        str(among([outcome for outcome, _ in result.unequal()])),
        "–" if row.whole_s is None else f"{row.whole_s:.2f}",
        *_quantiles_ms(row.gaps_s),
    ]
    return f"| {' | '.join(cells)} |"


def _quantiles_ms(values_s: Sequence[float]) -> list[str]:
    if not values_s:
        return ["–"] * 3
    return [f"{1000 * np.quantile(values_s, q, method='higher'):.0f}" for q in (0.5, 0.99, 1.0)]


def complaints(result: ChaosResult, limit: int = 10) -> list[str]:
    """Return the first failures and differences in words, one line each."""
    failed = [f"{o.request.name}: {o.failure}" for o in result.failed()]
    unequal = [f"{o.request.name}: {how}" for o, how in result.unequal()]
    return (failed + unequal)[:limit]
