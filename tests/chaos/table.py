"""Results of chaos runs as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.chaos.harness import ChaosResult, gaps_s
from tests.chaos.outcome import Outcome

HEAD = (
    "| event | times | requests | failed | excused | unequal | ready again, max (s) "
    "| longest gap p50 | p99 | max (ms) |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


def table(crowd: ChaosResult, chaos: ChaosResult) -> str:
    """Return a line without faults, one per kind of fault, and one for all of them.

    A request open during several events counts in the line of each, and once in the last line.
    """
    lines = [*HEAD, _line("none", crowd, crowd.outcomes, 0, None)]
    names = sorted({event.fault.name for event in chaos.events})
    for name in names:
        indices = [i for i, event in enumerate(chaos.events) if event.fault.name == name]
        open_then = {id(o): o for index in indices for o in chaos.during(index)}
        ready_s = max(chaos.events[index].ready_after_s for index in indices)
        lines.append(_line(name, chaos, list(open_then.values()), len(indices), ready_s))
    ready_s = max((event.ready_after_s for event in chaos.events), default=0.0)
    lines.append(_line("all", chaos, chaos.outcomes, len(chaos.events), ready_s))
    return "\n".join(lines) + "\n"


def _line(
    name: str, result: ChaosResult, outcomes: Sequence[Outcome], times: int, ready_s: float | None
) -> str:
    def among(some: Sequence[Outcome]) -> int:
        return len({id(outcome) for outcome in some} & {id(outcome) for outcome in outcomes})

    cells = [
        name,
        str(times or "–"),
        str(len(outcomes)),
        str(among(result.failed())),
        str(among(result.excused())),
        str(among([outcome for outcome, _ in result.unequal()])),
        "–" if ready_s is None else f"{ready_s:.2f}",
        *_quantiles_ms(gaps_s(outcomes)),
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
