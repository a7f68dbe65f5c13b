"""The protection bench's arithmetic: rates while all decode, losses by pairs, gaps by stream."""

from __future__ import annotations

import pytest

from tests.bench.bench_protection import Run, cost_figures, gap_figures


def steady(first_s: float, gap_s: float, num_tokens: int = 5) -> list[float]:
    return [first_s + number * gap_s for number in range(num_tokens)]


def test_the_rate_counts_what_comes_after_the_last_first_token() -> None:
    run = Run({"a": steady(0.0, 0.25), "b": steady(0.5, 0.125)})
    # After 0.5 s: two of `a` until 1.0, four of `b` until 1.0.
    assert run.tokens_per_s == pytest.approx(6 / 0.5)
    assert sorted(run.gaps_s) == [0.125] * 4 + [0.25] * 4


def test_the_loss_is_that_of_runs_side_by_side() -> None:
    on = [Run({"a": steady(0.0, gap_s)}, cpu_s=0.25) for gap_s in (0.2, 0.4, 0.8)]
    off = [Run({"a": steady(0.0, gap_s)}, cpu_s=0.2) for gap_s in (0.1, 0.4, 0.8)]
    figures = {each.key: each.value for each in cost_figures({"on": on, "off": off})}
    assert figures["protection_loss", ()] == pytest.approx(0.0)
    assert figures["protection_cpu_loss", ()] == pytest.approx(0.2)
    assert figures["protection", (("hedging", "on"),)] == pytest.approx(2.5)


def test_gaps_are_told_by_percentile_for_each() -> None:
    runs = {"on": [Run({"a": [0.0, 0.1, 0.2, 1.2]})], "off": [Run({"a": [0.0, 5.0]})]}
    values = [each.value for each in gap_figures(runs, "well")]
    assert values[0] == pytest.approx(0.1)
    assert values[2:] == [pytest.approx(1.0), 5.0, 5.0, 5.0]
