"""The step bench's arithmetic: nested calls are counted once, and every microsecond somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.bench_step import FORWARD, PHASES, measure, sums, table
from tests.bench.spans import Spans


def test_a_call_is_counted_without_those_inside_it() -> None:
    now_ns = [0]
    spans = Spans(clock_ns=lambda: now_ns[0])

    def work(took_ns: int) -> int:
        now_ns[0] += took_ns
        return took_ns

    inner = spans.timed("inner", work)

    def around() -> int:
        return work(5) + inner(70) + inner(30)

    assert spans.timed("outer", around)() == 105
    assert spans.own_ns == {"outer": 5, "inner": 100}
    assert spans.calls == {"outer": 1, "inner": 2}


def test_a_call_that_raises_is_counted_and_leaves_the_others_right() -> None:
    now_ns = [0]
    spans = Spans(clock_ns=lambda: now_ns[0])

    def fail() -> None:
        now_ns[0] += 7
        raise ValueError("no")

    def around() -> None:
        with pytest.raises(ValueError, match="no"):
            spans.timed("failing", fail)()
        now_ns[0] += 2

    spans.timed("outer", around)()
    assert spans.own_ns == {"failing": 7, "outer": 2}


def test_the_sums_part_the_step_into_engine_and_pass_python_and_kernels() -> None:
    phases = dict.fromkeys(PHASES, 10.0) | {"C ts_linear": 800.0, "C ts_vocab_draw": 70.0}
    python = 10.0 * len(PHASES)
    found = sums(phases)
    assert found["step"] == python + 870.0
    assert found["not_kernels"] == python
    assert found["engine"] == 10.0 * (len(PHASES) - len(FORWARD)) + 70.0


@pytest.mark.slow
def test_every_phase_of_a_real_step_is_seen(tiny_checkpoint: Path) -> None:
    phases = measure(tiny_checkpoint, streams=4, steps=10)
    assert all(phases[name] > 0.0 for name in PHASES)
    assert {"C ts_grouped_swiglu", "C ts_segment_attention", "C ts_vocab_draw"} <= phases.keys()
    assert "neither weights nor KV nor kernels" in table(phases)
