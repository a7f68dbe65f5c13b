"""What is known of a request's time in an engine, and of the steps of one that is traced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from torch import Tensor

from cluster.errors import ShardFailedError
from cluster.histogram import sum_s, total
from cluster.metrics import Metric, Metrics
from tests.unit.trinity_serve.engine.fakes import FakeRunner, make_config, make_request
from trinity_serve.engine.engine import Engine
from trinity_serve.engine.step_watch import RequestNotes, StepWatch
from trinity_serve.model.batch import ForwardBatch

STEP_S = 0.5
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class SlowRunner(FakeRunner):
    """Each forward pass takes half a second, makes two expert calls and waits for two layers."""

    clock: Clock
    metrics: Metrics

    def forward(self, batch: ForwardBatch) -> Tensor:
        self.clock.now_s += STEP_S
        self.metrics.inc(Metric.DISPATCH_CALLS, 2)
        self.metrics.times.waited(0, 0.001)
        self.metrics.times.waited(1, 0.003)
        return super().forward(batch)


class Bench:
    """An engine on a clock of its own."""

    def __init__(self, **changes: float) -> None:
        config = make_config(**changes)
        self.clock, self.metrics = Clock(), Metrics()
        self.runner = SlowRunner(config)
        self.runner.clock, self.runner.metrics = self.clock, self.metrics
        self.notes: list[RequestNotes] = []
        self.watch = StepWatch(self.metrics, self.notes.append, self.clock)
        self.engine = Engine(self.runner, config, watch=self.watch)

    def run(self) -> None:
        while self.engine.has_work:
            self.engine.step(self.clock.now_s)
        assert self.watch.num_watched == 0

    def sums(self) -> Sequence[float]:
        times = self.watch.times()
        return [sum_s(times[name]) for name in StepWatch.TIMES]


def test_queue_prefill_decode_and_gaps_are_told_apart() -> None:
    bench = Bench(max_num_seqs=1)
    bench.engine.submit(make_request("a", 10, 4))
    bench.engine.submit(make_request("b", 10, 2))
    bench.run()
    # a: no wait, one step to its first token, three more; b waits those four steps.
    queue_s, prefill_s, decode_s, gaps_s = bench.sums()
    assert queue_s == pytest.approx(4 * STEP_S)
    assert prefill_s == pytest.approx(2 * STEP_S)
    assert decode_s == pytest.approx(4 * STEP_S)
    assert gaps_s == pytest.approx(4 * STEP_S)
    times = bench.engine.stats().times
    assert [total(times[name]) for name in StepWatch.TIMES] == [2, 2, 2, 4]


def test_a_step_of_many_counts_as_a_gap_of_each() -> None:
    bench = Bench()
    for name in "abc":
        bench.engine.submit(make_request(name, 5, 3))
    bench.run()
    assert total(bench.watch.times()["inter_token"]) == 6
    assert bench.sums()[3] == pytest.approx(6 * STEP_S)


def test_what_is_cancelled_or_fails_is_forgotten() -> None:
    bench = Bench()
    bench.engine.submit(make_request("a", 5, 50))
    bench.engine.submit(make_request("b", 5, 50))
    bench.engine.step(0.0)
    assert bench.watch.num_watched == 2
    bench.engine.cancel(("a", 0))
    bench.runner.errors.append(ShardFailedError(0, "told to"))
    bench.engine.step(1.0)
    assert bench.watch.num_watched == 0


def test_a_reset_forgets_all() -> None:
    bench = Bench()
    bench.engine.submit(replace(make_request("a", 5, 50), trace=TRACE))
    bench.engine.submit(make_request("b", 5, 50))
    bench.engine.step(0.0)
    bench.engine.reset(ShardFailedError(0, "told to"))
    assert bench.watch.num_watched == 0
    assert [notes.request_id for notes in bench.notes] == ["a"]


def test_a_traced_request_knows_its_chunks_steps_calls_and_waiting() -> None:
    bench = Bench(max_num_batched_tokens=32)
    bench.engine.submit(replace(make_request("a", 70, 5), trace=TRACE))
    bench.run()
    (notes,) = bench.notes
    assert (notes.request_id, notes.choice, notes.attempt, notes.trace) == ("a", 0, 0, TRACE)
    assert [(chunk.start, chunk.num_rows) for chunk in notes.chunks] == [(0, 32), (32, 32), (64, 6)]
    assert [chunk.ended_s - chunk.began_s for chunk in notes.chunks] == [STEP_S] * 3
    assert (notes.decode_steps, notes.output_tokens) == (4, 5)
    assert (notes.rows, notes.calls, notes.retries) == (74, 14, 0)
    assert notes.waited_us == {0: 7_000, 1: 21_000}
    assert notes.first_token_s == pytest.approx(notes.queued_s + 3 * STEP_S)
    assert notes.ended_s == pytest.approx(notes.queued_s + 7 * STEP_S)


def test_nothing_is_noted_of_a_request_that_is_not_traced() -> None:
    bench = Bench()
    bench.engine.submit(make_request("a", 5, 3))
    bench.engine.submit(replace(make_request("b", 5, 3), trace=TRACE))
    bench.run()
    assert [notes.request_id for notes in bench.notes] == ["b"]


def test_what_shards_answered_is_in_the_engines_statistics() -> None:
    bench = Bench()
    bench.metrics.times.answered(1, (8, 3), 0.5, (100, 200))
    assert bench.engine.stats().by_shard == bench.metrics.times.snapshot()
