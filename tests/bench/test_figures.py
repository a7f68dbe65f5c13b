"""The benches' own arithmetic: ceilings, ratios, lines. Not measured, so it runs with the tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.bench_peers import measure_command, ratios, table
from tests.bench.bench_serving import shares
from tests.bench.ceiling import StepBytes
from tests.bench.plot_scaling import main as plot_scaling
from tests.bench.plot_scaling import points_by_axis
from tests.bench.report import Figure, Label, Machine, report
from tests.bench.serving_load import Plan
from trinity_serve.synthetic import PRESETS

SMALL = StepBytes.of(PRESETS["small"])


@pytest.mark.parametrize(
    ("tokens", "gigabytes", "hit"), [(1, 0.18, 4), (16, 0.60, 57), (64, 1.43, 163)]
)
def test_a_step_of_small_reads_what_was_counted_by_hand(
    tokens: int, gigabytes: float, hit: int
) -> None:
    assert round(SMALL.at(tokens) / 1e9, 2) == gigabytes
    assert round(SMALL.experts_hit(tokens)) == hit


def test_the_share_is_the_rate_over_what_bandwidth_allows() -> None:
    measured = Figure("decode", 535.0, "tokens/s", {"streams": 16})
    ceiling, share = shares([measured], SMALL, read_bytes_per_s=40e9)
    assert ceiling.value == pytest.approx(1070, rel=0.01)
    assert share.value == pytest.approx(0.5, rel=0.01)
    assert share.labels == {"streams": 16}


def test_ratios_are_above_one_where_ours_is_faster() -> None:
    at_16 = {"streams": 16}
    ours = [
        Figure("decode", 100.0, "tokens/s", at_16),
        Figure("decode", 300.0, "tokens/s", at_16),
        Figure("first_token", 0.5, "s", at_16),
    ]
    theirs = [
        Figure("decode", 50.0, "tokens/s", at_16),
        Figure("first_token", 1.0, "s", at_16),
        Figure("decode", 10.0, "tokens/s", {"streams": 64}),
    ]
    found = list(ratios(ours, theirs))
    assert [(each.bench, each.value) for each in found] == [
        ("decode_ratio", 4.0),
        ("first_token_ratio", 2.0),
    ]
    head, decode, _ = table({"peer": found}).splitlines()
    assert head.split() == ["peer"]
    assert decode.split() == ["decode_ratio", "streams=16", "4.00"]


def test_a_peer_that_does_not_start_is_named() -> None:
    with pytest.raises(RuntimeError, match="can't open file"):
        measure_command("python3 no_such_server.py --port {port}", Plan())


def test_a_line_has_the_figure_its_labels_and_where_it_comes_from(
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine = Machine.here()
    report(machine, Figure("decode", 123.456, "tokens/s", {"streams": 4}), model="tiny")
    line = json.loads(capsys.readouterr().out)
    assert (line["bench"], line["model"], line["streams"], line["value"]) == (
        "decode",
        "tiny",
        4,
        123.5,
    )
    assert {"commit", "date", "cpu", "cores", "memory_gb", "load", "unit"} <= line.keys()


def test_points_are_drawn_by_axis_in_order() -> None:
    lines = [
        json.dumps({"bench": "token_cost", "axis": "context", "context": 4096, "value": 2.0}),
        json.dumps({"bench": "token_cost", "axis": "context", "context": 1024, "value": 1.0}),
        json.dumps({"bench": "prompt_token_cost", "axis": "context", "context": 1, "value": 9.0}),
        json.dumps({"bench": "token_cost", "axis": "shards", "shards": 4, "value": 3.0}),
    ]
    assert points_by_axis(lines) == {"context": [(1024, 1.0), (4096, 2.0)], "shards": [(4, 3.0)]}


def test_the_picture_is_drawn_from_the_lines_that_were_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for axis, positions in (("context", (1024, 4096)), ("streams", (1, 16)), ("shards", (1, 4))):
        for position in positions:
            labels: dict[str, Label] = {"axis": axis, axis: position}
            report(Machine.here(), Figure("token_cost", 1.5, "ms", labels), model="tiny")
    lines, picture = tmp_path / "scaling.jsonl", tmp_path / "scaling.png"
    lines.write_text(capsys.readouterr().out)
    plot_scaling([str(lines), str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
