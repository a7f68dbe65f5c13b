"""Traces by OpenTelemetry over OTLP/HTTP: the only module that imports it, and only when asked to.

Spans are made when they are over and sent in batches by the SDK's own thread; a receiver that is
slow or away costs spans and never a request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from cluster.deadline import Deadline
from cluster.errors import ConfigError
from trinity_serve import __version__
from trinity_serve.config.observability import ObservabilityConfig
from trinity_serve.observe.tracing import OpenTrace, SpanNote, Tracer, Value

try:
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise ConfigError(
        "ServeConfig",
        "observability.traces",
        f"needs packages that are not installed ({error})",
        "off, or an installation with the extra: pip install 'trinity-serve[trace]'",
    ) from error

_MAX_QUEUED_SPANS = 8192
_MAX_BATCH_SPANS = 512
_SEND_EVERY_MS = 1000.0
_SEND_TIMEOUT_S = 5.0


def open_tracer(config: ObservabilityConfig, instance: str) -> Tracer:
    """Return a tracer that sends to the configured receiver."""
    exporter = OTLPSpanExporter(f"{config.traces}/v1/traces", timeout=_SEND_TIMEOUT_S)
    processor = BatchSpanProcessor(
        exporter, _MAX_QUEUED_SPANS, _SEND_EVERY_MS, _MAX_BATCH_SPANS, _SEND_TIMEOUT_S * 1e3
    )
    return OtelTracer(processor, config.trace_share, instance)


class OtelTracer:
    """A `Tracer` over a span processor of the SDK."""

    def __init__(self, processor: SpanProcessor, share: float, instance: str) -> None:
        resource = Resource.create(
            {
                "service.name": "trinity-serve",
                "service.version": __version__,
                "service.instance.id": instance,
            }
        )
        self._provider = TracerProvider(
            ParentBasedTraceIdRatio(share), resource, shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("trinity_serve", __version__)
        self._propagator = TraceContextTextMapPropagator()
        # Spans are dated by the wall, measured by the clock that never jumps.
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def begin(self, name: str, headers: Mapping[str, str]) -> OpenTrace | None:
        """See `Tracer`."""
        parent = self._propagator.extract(headers, Context())
        span = self._tracer.start_span(name, parent, SpanKind.SERVER)
        return _OpenTrace(self, span) if span.is_recording() else None

    def add(self, traceparent: str, span: SpanNote) -> None:
        """See `Tracer`."""
        self.write(span, self._propagator.extract({"traceparent": traceparent}, Context()))

    def close(self, deadline: Deadline) -> None:
        """See `Tracer`."""
        # The SDK's own bound is half a minute.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(deadline.remaining_s())

    def write(self, note: SpanNote, parent: Context) -> None:
        """Make a span and all below it."""
        span = self._tracer.start_span(
            note.name,
            parent,
            attributes=dict(note.attributes),
            start_time=self._wall_ns(note.began_s),
        )
        below = set_span_in_context(span, Context())
        for child in note.children:
            self.write(child, below)
        span.end(self._wall_ns(note.ended_s))

    def name_of(self, span: Span) -> str:
        """Return the traceparent that names `span`."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span, Context()))
        return carrier["traceparent"]

    def _wall_ns(self, at_s: float) -> int:
        return int(at_s * 1e9) + self._offset_ns


class _OpenTrace:
    def __init__(self, tracer: OtelTracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self.traceparent = tracer.name_of(span)

    def describe(self, attributes: Mapping[str, Value]) -> None:
        """See `OpenTrace`."""
        self._span.set_attributes(dict(attributes))

    def add(self, span: SpanNote) -> None:
        """See `OpenTrace`."""
        self._tracer.write(span, set_span_in_context(self._span, Context()))

    def end(self, failed: bool) -> None:
        """See `OpenTrace`."""
        if failed:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()
