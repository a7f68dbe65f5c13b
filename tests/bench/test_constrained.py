"""The load of constrained streams is one, and what they lose on an idle machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.bench_constrained import FREE, GRAMMARS, figures, measure, open_engine
from trinity_serve.synthetic import write_checkpoint


def test_every_kind_of_stream_makes_all_of_its_tokens(tiny_checkpoint: Path) -> None:
    engine = open_engine(tiny_checkpoint, streams=2)
    try:
        runs = measure(engine, streams=2, rounds=1, num_tokens=4)
    finally:
        engine.close()
    assert runs.keys() == GRAMMARS.keys()
    assert [run.num_tokens for each in runs.values() for run in each] == [8] * len(GRAMMARS)
    told = {(figure.bench, figure.labels["output"]) for figure in figures(runs)}
    assert {("constrained_loss", name) for name in GRAMMARS if name != FREE} <= told


@pytest.mark.bench
@pytest.mark.timeout(600)
def test_thirty_two_constrained_streams_lose_a_tenth_at_most(tmp_path: Path) -> None:
    write_checkpoint("small", tmp_path / "small")
    engine = open_engine(tmp_path / "small", streams=32)
    try:
        found = list(figures(measure(engine, streams=32, rounds=5, num_tokens=64)))
    finally:
        engine.close()
    print(found)
    assert all(figure.value <= 0.1 for figure in found if figure.bench == "constrained_loss")
