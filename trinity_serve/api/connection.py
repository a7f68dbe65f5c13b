"""The client's end of a connection: notice when it goes away, bound what it sends."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Coroutine, MutableMapping
from typing import TypeVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.errors import (
    BodyTooLargeError,
    CancelledRequestError,
    DeadlineExceededError,
    TrinityError,
)
from trinity_serve.api.auth import Gate, caller_of
from trinity_serve.api.errors import error_response
from trinity_serve.api.limits import ApiLimits

T = TypeVar("T")
REQUEST_ID_HEADER = "x-request-id"
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_END_TIMEOUT_S = 10.0


async def while_connected(receive: Receive, work: Coroutine[object, object, T], name: str) -> T:
    """Run `work`; cancel it and raise `CancelledRequestError` when the client goes away.

    The request's body must have been read. Returns only when `work` has ended.
    """
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise CancelledRequestError(name, "the client closed the connection")
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.wait((task, watcher), timeout=_END_TIMEOUT_S)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class ConnectionMiddleware:
    """Gives each request an id, asks whose it is, and reads its body whole and within limits.

    A client's own X-Request-Id is kept when it is short and plain. Raises nothing: a caller who may
    not and a body that is too large or too slow are answered here, before the application sees it.
    """

    def __init__(self, app: ASGIApp, limits: ApiLimits, gate: Gate) -> None:
        self._app = app
        self._limits = limits
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        sent_id = headers.get(REQUEST_ID_HEADER, "")
        request_id = sent_id if _SANE_ID.fullmatch(sent_id) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer_headers = MutableHeaders(scope=message)
                answer_headers[REQUEST_ID_HEADER] = request_id
                if (caller := caller_of(scope)) is not None:
                    answer_headers.update(caller.account.headers(self._gate.clock()))
            await send(message)

        try:
            # The gate goes first: strangers have no body read.
            self._gate.admit(scope, headers)
            body = await self._read_body(headers, receive)
        except TrinityError as error:
            await _refuse(error, scope, receive, send_with_id)
            return
        await self._app(scope, _replayed(body, receive), send_with_id)

    async def _read_body(self, headers: Headers, receive: Receive) -> list[Message]:
        limit = self._limits.max_body_bytes
        declared = headers.get("content-length", "0")
        if declared.isdigit() and int(declared[:20]) > limit:
            raise BodyTooLargeError(int(declared[:20]), limit)
        timeout_s = self._limits.body_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await _collect(receive, limit)
        except TimeoutError as error:
            raise DeadlineExceededError("Reading the request body", timeout_s) from error


async def _collect(receive: Receive, limit: int) -> list[Message]:
    """Read up to the body's end, or the client's. Returns the one or two messages to replay."""
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return [message]
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limit:
            raise BodyTooLargeError(size, limit)
        if not message.get("more_body", False):
            return [{"type": "http.request", "body": b"".join(chunks), "more_body": False}]


def _replayed(messages: list[Message], receive: Receive) -> Receive:
    async def replay() -> MutableMapping[str, object]:
        return messages.pop(0) if messages else await receive()

    return replay


async def _refuse(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    response = error_response(error, str(scope.get("path", "")))
    # What the client has not sent yet must not be read as the next request.
    response.headers["connection"] = "close"
    await response(scope, receive, send)
