"""A request's trace in its ingress: what is in it, and what never is."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cluster.errors import OverloadedError, TrinityError
from tests.fakes.scripted_engine import ScriptedEngine
from tests.support.spans import Seen, below, named
from trinity_serve.api.limits import ApiLimits
from trinity_serve.api.server import create_app
from trinity_serve.api.service import ModelService
from trinity_serve.observe.otel import OtelTracer

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CALLER = f"00-{TRACE_ID}-b7ad6b7169203331-01"
SECRET = "hi world"
BODIES = {
    "/v1/completions": {"model": "tiny", "prompt": SECRET, "max_tokens": 4},
    "/v1/chat/completions": {
        "model": "tiny",
        "messages": [{"role": "user", "content": SECRET}],
        "max_tokens": 4,
    },
    "/v1/responses": {"model": "tiny", "input": SECRET, "max_output_tokens": 4},
    "/v1/messages": {
        "model": "tiny",
        "messages": [{"role": "user", "content": SECRET}],
        "max_tokens": 4,
    },
}


class Spans:
    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()

    def all(self) -> list[Seen]:
        return [Seen.of_sdk(span) for span in self.exporter.get_finished_spans()]


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
async def traced(
    engine: ScriptedEngine, service: ModelService, limits: ApiLimits, spans: Spans
) -> AsyncIterator[httpx.AsyncClient]:
    tracer = OtelTracer(SimpleSpanProcessor(spans.exporter), 1.0, "test")
    app = create_app(engine, service, limits, tracer=tracer)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_each_way_to_generate_is_one_trace_that_joins_the_callers(
    traced: httpx.AsyncClient, engine: ScriptedEngine, spans: Spans, path: str, stream: bool
) -> None:
    answer = await traced.post(
        path, json={**BODIES[path], "stream": stream}, headers={"traceparent": CALLER}
    )
    assert answer.status_code == 200
    request = named(spans.all(), f"POST {path}")
    assert (request.trace_id, request.parent_id) == (TRACE_ID, "b7ad6b7169203331")
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["gen_ai.usage.output_tokens"] == 4
    assert [span.name for span in below(spans.all(), request)] == ["detokenise"]
    (asked,) = engine.requests
    assert asked.trace == f"00-{TRACE_ID}-{request.span_id}-01"


async def test_no_text_of_prompt_or_answer_is_in_any_span(
    traced: httpx.AsyncClient, engine: ScriptedEngine, spans: Spans
) -> None:
    answer = await traced.post("/v1/completions", json=BODIES["/v1/completions"])
    engine.failure, engine.fail_after = TrinityError(f"about {SECRET}"), 1
    await traced.post("/v1/completions", json=BODIES["/v1/completions"])
    made = answer.json()["choices"][0]["text"]
    assert made.strip()
    told = repr([(span.name, dict(span.attributes)) for span in spans.all()])
    for text in (SECRET, *SECRET.split(), made):
        assert text not in told


async def test_every_choice_of_a_request_is_traced_below_it(
    traced: httpx.AsyncClient, engine: ScriptedEngine, spans: Spans
) -> None:
    await traced.post("/v1/completions", json={**BODIES["/v1/completions"], "n": 2})
    request = named(spans.all(), "POST /v1/completions")
    assert {asked.trace.split("-")[2] for asked in engine.requests} == {request.span_id}
    assert len(engine.requests) == 2


async def test_a_refusal_is_a_trace_and_failed_when_it_is_ours(
    traced: httpx.AsyncClient, engine: ScriptedEngine, spans: Spans
) -> None:
    await traced.post("/v1/completions", json={"model": "tiny", "prompt": "x", "n": 99})
    assert [
        (span.attributes["http.response.status_code"], span.failed) for span in spans.all()
    ] == [(400, False)]
    spans.exporter.clear()
    engine.failure, engine.fail_after = TrinityError("told to"), 0
    await traced.post("/v1/completions", json=BODIES["/v1/completions"])
    assert named(spans.all(), "POST /v1/completions").failed
    spans.exporter.clear()
    engine.failure, engine.refusal = None, OverloadedError("engine queue", 1, 1.0)
    await traced.post("/v1/completions", json=BODIES["/v1/completions"])
    assert named(spans.all(), "POST /v1/completions").attributes["http.response.status_code"] == 429


async def test_what_does_not_generate_is_not_traced(
    traced: httpx.AsyncClient, spans: Spans
) -> None:
    for path in ("/health", "/metrics", "/v1/models", "/no-such-path"):
        await traced.get(path)
    await traced.post("/tokenize", json={"model": "tiny", "prompt": "x"})
    await traced.post("/v1/made-up", json={})
    assert spans.all() == []


async def test_a_caller_who_samples_not_is_served_as_if_there_were_no_traces(
    traced: httpx.AsyncClient, engine: ScriptedEngine, spans: Spans
) -> None:
    headers = {"traceparent": CALLER[:-2] + "00"}
    answer = await traced.post("/v1/completions", json=BODIES["/v1/completions"], headers=headers)
    assert answer.status_code == 200
    assert engine.requests[0].trace == ""
    assert spans.all() == []


async def test_without_a_tracer_requests_carry_no_trace(
    http: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    await http.post(
        "/v1/completions", json=BODIES["/v1/completions"], headers={"traceparent": CALLER}
    )
    assert engine.requests[0].trace == ""
