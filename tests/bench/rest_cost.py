"""The arithmetic of what serving over HTTP costs an engine: pure functions over what was measured.

Rates are taken while every stream decodes. The load generator shares the cores with the server, so
what it used is counted apart, and by bounds instead of by a guess:

- at most: the generator took nothing from the server; whatever the rate lost, serving cost it.
  ``1 - served / alone``
- at least: each second that the generator computed, the server would have used. Of `cores` times
  `wall_s` processor seconds the server could have at most ``cores * wall_s - cpu_s``, so that
  without the generator it would have been faster by ``1 / (1 - cpu_s / (cores * wall_s))``.

The truth lies between: a generator that computes while a core idles takes nothing away.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tests.support.load import StreamResult


@dataclass(frozen=True)
class Run:
    """One run of the load, by the engine alone or through the server."""

    tokens_per_s: float
    wall_s: float
    tokens: int
    tree_cpu_s: float
    """Of all the server's processes; the generator is none of them."""
    load_cpu_s: float = 0.0
    """The generator's own; none where the engine was driven from inside."""

    @property
    def cpu_per_token_s(self) -> float:
        """Processor time of a token, prefill included: does not depend on who else computed."""
        return self.tree_cpu_s / self.tokens


@dataclass(frozen=True)
class Round:
    """Runs of the engine alone, and of the server started right after it had ended."""

    alone: Sequence[Run]
    served: Sequence[Run]


@dataclass(frozen=True)
class Cost:
    """Shares of the engine's own decode rate that serving takes."""

    at_most: float
    at_least: float


def steady_rate(streams: Sequence[StreamResult]) -> float:
    """Return tokens per second while all streams decode: no prefill and no thinning end in it.

    Raises ValueError when some stream had ended before the last one began.
    """
    begin_s = max(stream.token_times_s[0] for stream in streams)
    end_s = min(stream.token_times_s[-1] for stream in streams)
    if end_s <= begin_s:
        raise ValueError("the streams never decoded all at once: ask for more tokens")
    times = (time_s for stream in streams for time_s in stream.token_times_s)
    return sum(begin_s < time_s <= end_s for time_s in times) / (end_s - begin_s)


def cost_of(rounds: Sequence[Round], cores: int) -> Cost:
    """Return the median over rounds: what drifts between rounds falls out of each quotient."""

    def median(free_of_load: bool) -> float:
        return statistics.median(_cost_in(each, cores if free_of_load else None) for each in rounds)

    return Cost(at_most=median(False), at_least=median(True))


def _cost_in(one: Round, cores: int | None) -> float:
    alone = statistics.median(run.tokens_per_s for run in one.alone)
    return 1.0 - statistics.median(_rate(run, cores) for run in one.served) / alone


def _rate(run: Run, cores: int | None) -> float:
    """Return the rate; with `cores`, as if the server had had the generator's time too."""
    if cores is None:
        return run.tokens_per_s
    return run.tokens_per_s / (1.0 - run.load_cpu_s / (cores * run.wall_s))
