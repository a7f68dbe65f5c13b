"""Spans as the SDK sees them, and on the wire to a receiver."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cluster.deadline import Deadline
from tests.support.spans import Seen, below, named, receiving
from trinity_serve.config.observability import ObservabilityConfig
from trinity_serve.observe.otel import OtelTracer
from trinity_serve.observe.tracing import SpanNote, Tracer, open_tracer

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = f"00-{TRACE_ID}-b7ad6b7169203331-01"
NOT_SAMPLED = f"00-{TRACE_ID}-b7ad6b7169203331-00"


class Memory:
    """A tracer whose spans stay here."""

    def __init__(self, share: float = 1.0) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracer: Tracer = OtelTracer(SimpleSpanProcessor(self._exporter), share, "test")

    @property
    def spans(self) -> list[Seen]:
        return [Seen.of_sdk(span) for span in self._exporter.get_finished_spans()]


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory()
    yield memory
    memory.tracer.close(Deadline.after(5.0))


def test_a_request_joins_its_callers_trace_and_a_rank_joins_the_requests(memory: Memory) -> None:
    trace = memory.tracer.begin("POST /v1/completions", {"traceparent": SAMPLED})
    assert trace is not None
    assert trace.traceparent.startswith(f"00-{TRACE_ID}-")
    memory.tracer.add(trace.traceparent, SpanNote("generate", 1.0, 2.0))
    trace.end(failed=False)
    request = named(memory.spans, "POST /v1/completions")
    assert (request.trace_id, request.parent_id) == (TRACE_ID, "b7ad6b7169203331")
    assert [span.name for span in below(memory.spans, request)] == ["generate"]


def test_a_caller_who_samples_not_is_not_traced(memory: Memory) -> None:
    assert memory.tracer.begin("x", {"traceparent": NOT_SAMPLED}) is None
    assert memory.spans == []


@pytest.mark.parametrize("headers", [{}, {"traceparent": "00-nonsense"}])
def test_who_names_no_trace_gets_a_new_one_by_share(headers: dict[str, str]) -> None:
    always, never = Memory(1.0), Memory(0.0)
    trace = always.tracer.begin("x", headers)
    assert trace is not None
    trace.end(failed=True)
    (span,) = always.spans
    assert (span.parent_id, span.failed) == ("", True)
    assert never.tracer.begin("x", headers) is None
    assert never.tracer.begin("x", {"traceparent": SAMPLED}) is not None


def test_spans_below_spans_are_dated_by_the_wall(memory: Memory) -> None:
    now_s, now_ns = time.monotonic(), time.time_ns()
    inner = SpanNote("queue", now_s - 2.0, now_s - 1.0, {"trinity.rows": 3})
    memory.tracer.add(SAMPLED, SpanNote("generate", now_s - 2.0, now_s, {}, (inner,)))
    outer = named(memory.spans, "generate")
    (span,) = below(memory.spans, outer)
    assert (span.name, span.attributes) == ("queue", {"trinity.rows": 3})
    assert span.ended_ns - span.began_ns == pytest.approx(1e9, abs=1e6)
    assert outer.ended_ns == pytest.approx(now_ns, abs=1e9)


def test_a_receiver_gets_what_was_traced_under_the_process_name() -> None:
    with receiving() as receiver:
        tracer = open_tracer(ObservabilityConfig(traces=receiver.url), "rank 3")
        assert tracer is not None
        trace = tracer.begin("POST /v1/completions", {"traceparent": SAMPLED})
        assert trace is not None
        trace.end(failed=False)
        tracer.close(Deadline.after(10.0))
        (span,) = receiver.spans
    assert receiver.paths == {"/v1/traces"}
    assert (span.name, span.trace_id, span.instance) == ("POST /v1/completions", TRACE_ID, "rank 3")


def test_a_receiver_that_is_away_costs_spans_and_no_time() -> None:
    tracer = open_tracer(ObservabilityConfig(traces="http://127.0.0.1:9"), "rank 0")
    assert tracer is not None
    tracer.add(SAMPLED, SpanNote("generate", 1.0, 2.0))
    deadline = Deadline.after(0.2)
    tracer.close(deadline)
    assert deadline.remaining_s() > -5.0
