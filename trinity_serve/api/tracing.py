"""The part of a trace that an ingress knows: the request as a whole, and turning ids into text."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trinity_serve.api.choice import Delta
from trinity_serve.api.generation import PushEvents
from trinity_serve.api.reply import Plan, Usage
from trinity_serve.engine.request import TokenEvent
from trinity_serve.observe.tracing import OpenTrace, SpanNote, Tracer

TRACED_PATHS = frozenset(
    {"/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"}
)
"""What generates. Names of spans have to be few, whatever paths clients make up."""
_STATE = "trace"
_CALLERS_HEADERS = ("traceparent", "tracestate")


class TraceMiddleware:
    """Opens a span around each request that generates; stands behind the gate."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        trace = self._begin(scope)
        if trace is None:
            await self._app(scope, receive, send)
            return
        scope["state"][_STATE] = trace
        status = 500

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        finally:
            trace.describe({"http.response.status_code": status})
            trace.end(failed=status >= 500)

    def _begin(self, scope: Scope) -> OpenTrace | None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return None
        path = get_route_path(scope)
        if path not in TRACED_PATHS:
            return None
        headers = Headers(scope=scope)
        sent = {name: headers[name] for name in _CALLERS_HEADERS if name in headers}
        trace = self._tracer.begin(f"POST {path}", sent)
        if trace is not None:
            trace.describe({"http.request.method": "POST", "http.route": path})
        return trace


def trace_of(scope: Scope) -> OpenTrace | None:
    """Return the trace of the request, if it has one."""
    trace: OpenTrace | None = scope.get("state", {}).get(_STATE)
    return trace


class GenerationTrace:
    """What one generation adds to the trace of its request. Used on one event loop."""

    def __init__(self, trace: OpenTrace, clock: Callable[[], float] = time.monotonic) -> None:
        self._trace = trace
        self._clock = clock
        self._busy_s = 0.0
        self._first_s: float | None = None
        self._last_s = 0.0
        self._num_tokens = 0

    def marked(self, plan: Plan) -> Plan:
        """Return `plan` with choices that ranks trace below this request."""
        self._trace.describe({"trinity.reply_id": plan.reply_id})
        parent = self._trace.traceparent
        choices = [
            replace(choice, request=replace(choice.request, trace=parent))
            for choice in plan.choices
        ]
        return replace(plan, choices=tuple(choices))

    def timed(self, push: PushEvents) -> PushEvents:
        """Return `push`, measured."""

        def timed_push(events: list[TokenEvent]) -> list[Delta]:
            began_s = self._clock()
            if self._first_s is None:
                self._first_s = began_s
            try:
                return push(events)
            finally:
                self._last_s = self._clock()
                self._busy_s += self._last_s - began_s
                self._num_tokens += len(events)

        return timed_push

    def ended(self, usage: Usage) -> None:
        """Tell what was made, in numbers."""
        self._trace.describe(
            {
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.output_tokens": usage.completion_tokens,
                "trinity.cached_tokens": usage.cached_tokens,
            }
        )
        if self._first_s is not None:
            attributes = {"trinity.busy_ms": self._busy_s * 1e3, "trinity.events": self._num_tokens}
            self._trace.add(SpanNote("detokenise", self._first_s, self._last_s, attributes))
