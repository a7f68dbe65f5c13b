"""From what a rank noted of a request to its spans, and who writes them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from cluster.deadline import Deadline
from cluster.errors import ConfigError
from trinity_serve.config.observability import ObservabilityConfig
from trinity_serve.engine.step_watch import ChunkNote, RequestNotes
from trinity_serve.observe.tracing import (
    NotesWriter,
    OpenTrace,
    SpanNote,
    Traces,
    open_tracer,
    spans_of,
)

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTEL = "trinity_serve.observe.otel"


def notes(**changes: object) -> RequestNotes:
    fields: dict[str, object] = {
        "planned_s": 11.0,
        "first_token_s": 13.0,
        "ended_s": 20.0,
        "chunks": [ChunkNote(0, 32, 11.0, 12.0), ChunkNote(32, 8, 12.0, 13.0)],
        "decode_steps": 4,
        "output_tokens": 5,
        "rows": 44,
        "calls": 12,
        "retries": 1,
        "waited_us": {1: 3000, 0: 1000},
    }
    return RequestNotes("r", 0, 2, TRACE, 40, 10.0, **(fields | changes))  # type: ignore[arg-type]


@dataclass
class FakeTracer:
    """Keeps what it is given; `hold` lets a test stop it."""

    spans: list[tuple[str, SpanNote]] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    closed: bool = False

    def begin(self, name: str, headers: Mapping[str, str]) -> OpenTrace | None:
        return None

    def add(self, traceparent: str, span: SpanNote) -> None:
        self.entered.set()
        assert self.hold.wait(10.0)
        self.spans.append((traceparent, span))

    def close(self, deadline: Deadline) -> None:
        self.closed = True


def test_a_requests_spans_are_queue_chunks_decode_and_dispatch() -> None:
    span = spans_of(notes())
    assert (span.name, span.began_s, span.ended_s) == ("generate", 10.0, 20.0)
    assert [(each.name, each.began_s, each.ended_s) for each in span.children] == [
        ("queue", 10.0, 11.0),
        ("prefill", 11.0, 12.0),
        ("prefill", 12.0, 13.0),
        ("decode", 13.0, 20.0),
        ("dispatch", 11.0, 20.0),
    ]
    assert span.attributes["trinity.attempt"] == 2
    assert span.children[2].attributes == {"trinity.start": 32, "trinity.rows": 8}
    assert span.children[4].attributes == {
        "trinity.rows": 44,
        "trinity.calls": 12,
        "trinity.retries": 1,
        "trinity.waited_ms": 4.0,
        "trinity.waited_ms_by_layer": [1.0, 3.0],
    }


def test_what_never_ran_has_a_queue_alone() -> None:
    span = spans_of(notes(planned_s=None, first_token_s=None, chunks=[]))
    assert [(each.name, each.ended_s) for each in span.children] == [("queue", 20.0)]


def test_what_ended_in_its_prefill_has_no_decode() -> None:
    names = [each.name for each in spans_of(notes(first_token_s=None)).children]
    assert names == ["queue", "prefill", "prefill", "dispatch"]


def test_notes_are_written_below_the_span_that_they_came_with() -> None:
    tracer = FakeTracer()
    tracer.hold.set()
    writer = NotesWriter(tracer)
    writer.put(notes())
    writer.close(Deadline.after(10.0))
    assert tracer.spans == [(TRACE, spans_of(notes()))]
    assert tracer.closed


def test_an_engine_never_waits_for_a_writer_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    tracer = FakeTracer()
    writer = NotesWriter(tracer, max_waiting=2)
    writer.put(notes())
    assert tracer.entered.wait(10.0)
    for _ in range(5):
        writer.put(notes())
    assert caplog.text.count("traces are dropped") == 1
    writer.close(Deadline.after(0.05))
    tracer.hold.set()


def test_without_a_receiver_nothing_is_imported_opened_or_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, OTEL, raising=False)
    traces = Traces.open(ObservabilityConfig(), "rank 0")
    assert (traces.tracer, traces.sink) == (None, None)
    assert OTEL not in sys.modules
    traces.close()


@pytest.mark.parametrize("package", ["exporter.otlp.proto.http.trace_exporter", "sdk.trace"])
def test_a_missing_package_is_said_with_the_extra_that_has_it(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.delitem(sys.modules, OTEL, raising=False)
    monkeypatch.setitem(sys.modules, f"opentelemetry.{package}", None)
    with pytest.raises(ConfigError, match=r"observability\.traces.*trinity-serve\[trace\]"):
        open_tracer(ObservabilityConfig(traces="http://127.0.0.1:4318"), "rank 0")


@pytest.mark.parametrize("text", ["off", False, None])
def test_traces_are_off_as_yaml_says_it(text: object) -> None:
    assert ObservabilityConfig.model_validate({"traces": text}).traces is None


@pytest.mark.parametrize("text", ["on", True, "127.0.0.1:4318", "ftp://x", "http://"])
def test_what_is_no_address_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="traces"):
        ObservabilityConfig.model_validate({"traces": text})
