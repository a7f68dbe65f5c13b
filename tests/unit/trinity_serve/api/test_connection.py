from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from starlette.types import Message, Receive, Scope, Send

from cluster.errors import CancelledRequestError
from trinity_serve.api.auth import Gate
from trinity_serve.api.connection import ConnectionMiddleware, while_connected
from trinity_serve.api.limits import ApiLimits

Messages = list[Message]


def _receiver(messages: Iterable[Message]) -> Receive:
    """Give the messages one by one, then nothing for ever."""
    left = list(messages)

    async def receive() -> Message:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    return receive


def _part(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def _call(limits: ApiLimits, messages: Messages, *headers: tuple[bytes, bytes]) -> Messages:
    """Send `messages` through the middleware to an application that answers with its body."""
    sent: Messages = []

    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "client": ("127.0.0.1", 1),
        "headers": list(headers),
    }
    await ConnectionMiddleware(echo, limits, Gate())(scope, _receiver(messages), send)
    return sent


async def test_a_body_in_parts_comes_whole() -> None:
    parts = [_part(b"ab", more=True), _part(b"cd", more=False)]
    start, body = await _call(ApiLimits(), parts)
    assert (start["status"], body["body"]) == (200, b"abcd")


async def test_a_body_that_grows_past_the_limit_is_413_and_the_end_of_the_connection() -> None:
    parts = [_part(b"x" * 60, more=True)] * 10
    start, _ = await _call(ApiLimits(max_body_bytes=100), parts)
    assert start["status"] == 413
    assert (b"connection", b"close") in start["headers"]


async def test_a_declared_length_past_the_limit_is_refused_unread() -> None:
    start, _ = await _call(ApiLimits(max_body_bytes=100), [], (b"content-length", b"101"))
    assert start["status"] == 413


async def test_a_body_that_does_not_come_is_given_up() -> None:
    start, _ = await _call(ApiLimits(body_timeout_s=0.02), [_part(b"x", more=True)])
    assert start["status"] == 504


async def test_work_is_cancelled_and_over_when_the_client_goes_away() -> None:
    over = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            over.set()

    gone: Message = {"type": "http.disconnect"}
    with pytest.raises(CancelledRequestError, match="closed the connection"):
        await while_connected(_receiver([gone]), work(), "r")
    assert over.is_set()


async def test_a_result_and_an_error_come_through() -> None:
    async def fine() -> int:
        return 7

    async def broken() -> int:
        raise ValueError("x")

    assert await while_connected(_receiver([]), fine(), "r") == 7
    with pytest.raises(ValueError, match="x"):
        await while_connected(_receiver([]), broken(), "r")
