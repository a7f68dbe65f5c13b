"""What a prompt row costs is learned from steps, and rows are as many as the bound allows."""

from __future__ import annotations

import pytest

from trinity_serve.engine.prefill_pace import PROBE_ROWS, PrefillPace


def learned(
    fixed_s: float, slope_s: float, contexts: tuple[int, ...] = (0, 2000, 9000)
) -> PrefillPace:
    """Return a pace that has seen steps which cost exactly so much."""
    pace = PrefillPace(0.5)
    for _ in range(10):
        pace.decoded(0.1)
    for _ in range(6):
        for context in contexts:
            pace.mixed(100, context, 0.1 + 100 * (fixed_s + slope_s * context))
    return pace


def test_before_any_mixed_step_a_few_rows_try_it_out() -> None:
    assert PrefillPace(0.25).rows_within(0.25, 0) == PROBE_ROWS


@pytest.mark.parametrize("context", [0, 5000, 100_000])
def test_costs_are_told_at_every_context(context: int) -> None:
    pace = learned(1e-3, 2e-7)
    assert pace.row_s(context) == pytest.approx(1e-3 + 2e-7 * context, rel=0.05)
    # Four fifths of the bound, less the decodes.
    assert pace.budget_s() == pytest.approx(0.3, rel=1e-6)
    assert pace.rows_within(0.4, 0) == pytest.approx(400, rel=0.05)


def test_from_steps_of_one_context_a_longer_one_is_guessed_to_cost_more() -> None:
    pace = learned(1e-3, 0.0, contexts=(100,))
    near, far = pace.row_s(100), pace.row_s(8292)
    assert near is not None
    assert far is not None
    assert near == pytest.approx(1e-3, rel=0.02)
    assert far == pytest.approx(2e-3, rel=0.05)


def test_rows_that_cost_less_with_more_context_are_taken_at_their_mean() -> None:
    pace = PrefillPace(0.5)
    for context, took_s in ((0, 1.0), (20_000, 0.5)) * 3:
        pace.mixed(100, context, took_s)
    assert pace.row_s(50_000) == pace.row_s(0)


def test_one_step_that_was_held_up_is_soon_forgotten() -> None:
    pace = learned(1e-3, 0.0)
    pace.mixed(100, 0, 10.0)
    for _ in range(12):
        pace.mixed(100, 0, 0.1 + 100 * 1e-3)
    row_s = pace.row_s(0)
    assert row_s is not None
    assert row_s < 1.6e-3


def test_where_decodes_take_longer_than_the_bound_prompts_may_double_the_step() -> None:
    pace = PrefillPace(0.25)
    pace.decoded(2.0)
    assert pace.budget_s() == 2.0
