"""A generation as an HTTP answer: run it, send it, and let go of everything when it is over.

What fails before the first token becomes a real HTTP status; what fails later, an error event in
the stream. All of it runs inside the response, so that nothing is held that nobody reads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cluster.errors import CancelledRequestError, OverloadedError
from trinity_serve.api.auth import caller_of
from trinity_serve.api.choice import Delta
from trinity_serve.api.connection import while_connected
from trinity_serve.api.context import Api
from trinity_serve.api.generation import Generation
from trinity_serve.api.pace import StreamPace
from trinity_serve.api.reply import Plan, Reply, Usage, WholeChoice, collect
from trinity_serve.api.tracing import GenerationTrace, trace_of

_log = logging.getLogger(__name__)
_RETRY_AFTER_S = 1.0
_SSE_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
_JSON_HEADERS = {"content-type": "application/json"}


class GenerationResponse(Response):
    """Answers one request. Raises the engine's error as long as no byte has been sent."""

    def __init__(self, api: Api, plan: Plan, reply: Reply) -> None:
        super().__init__()
        self._api, self._plan, self._reply = api, plan, reply
        self._first_s: float | None = None
        self._failed = False
        self._completion_tokens = 0
        self._pace = StreamPace(plan.stream_interval) if plan.stream_interval > 1 else None
        self._trace: GenerationTrace | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the generation for as long as the client is there (ASGI)."""
        metrics, limits = self._api.metrics, self._api.limits
        if metrics.num_open >= limits.max_open_requests:
            raise OverloadedError("ingress", limits.max_open_requests, _RETRY_AFTER_S)
        if (trace := trace_of(scope)) is not None:
            self._trace = GenerationTrace(trace)
            self._plan = self._trace.marked(self._plan)
        num_choices = len(self._plan.choices)
        caller = caller_of(scope)
        if caller is not None:
            caller.account.open(num_choices, self._plan.prompt_tokens, time.monotonic())
        metrics.opened()
        try:
            await while_connected(receive, self._answer(send), self._plan.reply_id)
        except CancelledRequestError as error:
            # Nobody is left to be answered.
            metrics.ended("abort")
            _log.info("%s", error)
        except Exception:
            metrics.ended("error")
            raise
        finally:
            metrics.closed()
            if caller is not None:
                caller.account.close(num_choices, self._completion_tokens, time.monotonic())

    async def _answer(self, send: Send) -> None:
        plan, api = self._plan, self._api
        limit_s = plan.deadline.remaining_s() + api.limits.send_grace_s
        tokenizer = api.service.tokenizer
        timed = None if self._trace is None else self._trace.timed
        async with (
            asyncio.timeout(limit_s),
            Generation(
                api.client, tokenizer, plan.choices, plan.deadline, timed=timed
            ) as generation,
        ):
            try:
                await (self._stream if plan.stream else self._send_whole)(generation, send)
            finally:
                self._completion_tokens = generation.completion_tokens
                if self._trace is not None:
                    self._trace.ended(self._usage(generation))
            if not self._failed:
                self._record(generation)

    async def _send_whole(self, generation: Generation, send: Send) -> None:
        choices = [WholeChoice() for _ in range(self._plan.num_choices)]
        collect(choices, self._plan.ready)
        async for deltas in generation:
            self._note(deltas)
            collect(choices, deltas)
        body = self._reply.whole(choices, self._usage(generation))
        await send(_start(_JSON_HEADERS | {"content-length": str(len(body))}))
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, generation: Generation, send: Send) -> None:
        # The first wait is before the status line: an error here is a status, not an event.
        first = await anext(generation, None) or list(self._plan.ready)
        await send(_start(_SSE_HEADERS))
        async for part in self._parts(generation, first):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": self._reply.last})

    async def _parts(self, generation: Generation, first: list[Delta]) -> AsyncIterator[bytes]:
        """Yield the stream; each part is everything that had come, sent in one write."""
        yield self._reply.opening(self._usage(generation)) + self._chunks(first, generation)
        try:
            async for deltas in generation:
                part = self._chunks(deltas, generation)
                if part:
                    yield part
        except Exception as error:  # the border: the stream has begun, so it tells the error
            self._failed = True
            self._api.metrics.ended("error")
            yield self._reply.failure(error)
            return
        if self._plan.include_usage:
            yield self._reply.usage_chunk(self._usage(generation))

    def _chunks(self, deltas: Sequence[Delta], generation: Generation) -> bytes:
        self._note(deltas)
        reply, pace = self._reply, self._pace
        usage = b',"usage":null' if self._plan.include_usage else b""
        if self._plan.continuous_usage:
            usage = b',"usage":' + orjson.dumps(self._usage(generation).fields())
        if pace is None:
            return b"".join([reply.chunk(delta, usage) for delta in deltas])
        return b"".join([reply.chunk(delta, usage, tokens) for delta, tokens in pace.push(deltas)])

    def _usage(self, generation: Generation) -> Usage:
        return Usage(
            self._plan.prompt_tokens, generation.completion_tokens, generation.cached_tokens
        )

    def _note(self, deltas: Sequence[Delta]) -> None:
        if self._first_s is None:
            self._first_s = self._elapsed_s()
            self._api.metrics.first_token(self._first_s)
        for delta in deltas:
            if delta.finish is not None:
                self._api.metrics.ended(delta.finish.value)

    def _record(self, generation: Generation) -> None:
        total_s = self._elapsed_s()
        self._api.metrics.done(
            self._plan.prompt_tokens, generation.completion_tokens, total_s, self._first_s or 0.0
        )

    def _elapsed_s(self) -> float:
        deadline = self._plan.deadline
        return time.monotonic() - (deadline.at_s - deadline.budget_s)


def _start(headers: dict[str, str]) -> dict[str, object]:
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": 200, "headers": raw}
