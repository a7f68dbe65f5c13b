"""Spans that a test collected, as trees; and a receiver of OTLP over HTTP."""

from __future__ import annotations

import gzip
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan

DEADLINE_S = 20.0


@dataclass(frozen=True)
class Seen:
    """One span, whatever way it came."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    began_ns: int
    ended_ns: int
    attributes: Mapping[str, object]
    failed: bool = False
    instance: str = ""

    @classmethod
    def of_sdk(cls, span: ReadableSpan) -> Seen:
        assert span.context is not None
        assert span.start_time is not None
        assert span.end_time is not None
        return cls(
            f"{span.context.trace_id:032x}",
            f"{span.context.span_id:016x}",
            "" if span.parent is None else f"{span.parent.span_id:016x}",
            span.name,
            span.start_time,
            span.end_time,
            dict(span.attributes or {}),
            not span.status.is_ok and span.status.status_code.name == "ERROR",
        )


def below(spans: list[Seen], parent: Seen) -> list[Seen]:
    """The children of a span, by their beginning."""
    children = [span for span in spans if span.parent_id == parent.span_id]
    return sorted(children, key=lambda span: span.began_ns)


def named(spans: list[Seen], name: str) -> Seen:
    (found,) = [span for span in spans if span.name == name]
    return found


@dataclass
class Receiver:
    """What was sent to it. `url` is the base address."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)

    @property
    def spans(self) -> list[Seen]:
        found = []
        for body in list(self.bodies):
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                told = {each.key: each.value.string_value for each in group.resource.attributes}
                for scope in group.scope_spans:
                    for span in scope.spans:
                        found.append(
                            Seen(
                                span.trace_id.hex(),
                                span.span_id.hex(),
                                span.parent_span_id.hex(),
                                span.name,
                                span.start_time_unix_nano,
                                span.end_time_unix_nano,
                                {each.key: str(each.value) for each in span.attributes},
                                span.status.code == 2,
                                told["service.instance.id"],
                            )
                        )
        return found

    def await_names(self, *names: str, times: int = 1) -> list[Seen]:
        """Wait until spans of all these names are there, so many of each; return all."""
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            spans = self.spans
            counts = Counter(span.name for span in spans)
            if all(counts[name] >= times for name in names):
                return spans
            assert time.monotonic() < deadline_s, counts
            time.sleep(0.05)


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on loopback for the time of the block."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            receiver.paths.add(self.path)
            receiver.bodies.append(body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
