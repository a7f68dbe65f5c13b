"""The arithmetic of the REST cost, on loads whose cost is known."""

from __future__ import annotations

import pytest

from tests.bench.bench_rest_cost import figures
from tests.bench.rest_cost import Round, Run, cost_of, steady_rate
from tests.support.load import StreamResult

CORES = 2


def run(tokens_per_s: float, wall_s: float = 10.0, load_cpu_s: float = 0.0) -> Run:
    return Run(tokens_per_s, wall_s, 2000, 14.0, load_cpu_s)


def stream(first_s: float, step_s: float, tokens: int) -> StreamResult:
    return StreamResult(0.0, [first_s + step_s * number for number in range(tokens)])


def test_serving_that_takes_nothing_costs_nothing() -> None:
    cost = cost_of([Round([run(300.0)], [run(300.0)])], CORES)
    assert (cost.at_most, cost.at_least) == (0.0, 0.0)


def test_a_generator_that_takes_a_known_share_of_busy_cores_is_taken_off_exactly() -> None:
    """The server loses a tenth of its speed to serving, and then a quarter to the generator."""
    alone, wall_s = 400.0, 10.0
    without_generator = 0.9 * alone
    seen = run(0.75 * without_generator, wall_s, load_cpu_s=0.25 * CORES * wall_s)
    cost = cost_of([Round([run(alone)], [seen])], CORES)
    assert cost.at_least == pytest.approx(0.1)
    assert cost.at_most == pytest.approx(1 - 0.9 * 0.75)


def test_a_generator_that_runs_on_an_idle_core_leaves_the_truth_within_the_bounds() -> None:
    """It slows nothing down: what the rate lost is the cost, the upper bound."""
    seen = run(0.9 * 400.0, 10.0, load_cpu_s=0.5)
    cost = cost_of([Round([run(400.0)], [seen])], CORES)
    assert cost.at_most == pytest.approx(0.1)
    assert cost.at_least < cost.at_most


def test_a_machine_that_slows_down_between_rounds_changes_no_cost() -> None:
    def slowed(by: float) -> Round:
        return Round([run(400.0 * by)] * 3, [run(340.0 * by)] * 3)

    rounds = [slowed(1.0), slowed(0.8), slowed(0.5)]
    assert cost_of(rounds, CORES).at_most == pytest.approx(0.15)


def test_one_disturbed_run_and_one_disturbed_round_fall_out() -> None:
    good = Round([run(400.0), run(400.0), run(90.0)], [run(360.0), run(12.0), run(360.0)])
    disturbed = Round([run(100.0)] * 3, [run(360.0)] * 3)
    assert cost_of([good, disturbed, good], CORES).at_most == pytest.approx(0.1)


def test_the_rate_counts_only_while_all_streams_decode() -> None:
    """10 tokens a second each; the second stream begins 3 s later and the first ends 3 s sooner."""
    streams = [stream(1.0, 0.1, 60), stream(4.0, 0.1, 60)]
    assert steady_rate(streams) == pytest.approx(20.0, rel=0.03)


def test_streams_that_never_ran_at_once_have_no_rate() -> None:
    with pytest.raises(ValueError, match="more tokens"):
        steady_rate([stream(0.0, 0.1, 5), stream(9.0, 0.1, 5)])


def test_figures_name_which_kind_they_are_of() -> None:
    rounds = [Round([run(400.0)], [run(300.0, load_cpu_s=1.0)])]
    found = {(each.bench, each.labels.get("engine")): each.value for each in figures(rounds, CORES)}
    assert found["decode_steady", "alone"] == 400.0
    assert found["decode_steady", "served"] == 300.0
    assert found["cpu_per_token", "served"] == pytest.approx(0.007)
    assert found["load_cpu", "served"] == pytest.approx(0.1)
    assert found["rest_cost_at_most", None] == pytest.approx(0.25)
    assert found["rest_cost_at_least", None] == pytest.approx(1 - 300 / 0.95 / 400)
