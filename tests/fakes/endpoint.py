"""An OpenAI endpoint whose tokens follow from the request alone, and which fails as it is told."""

from __future__ import annotations

import asyncio
import itertools
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import orjson

JsonObject = dict[str, object]


@dataclass(frozen=True)
class Behaviour:
    """What happens to one request."""

    status: int = 200
    cut_after: int | None = None
    """Drop the connection after so many tokens."""
    error_after: int | None = None
    """Send an error event after so many tokens."""
    code: str = ""
    """Of the error, in an event or with `status`; a refusal with a code says when to come back."""
    change_token: int | None = None
    """Send another token at this position."""
    change_logprob: int | None = None
    pause_after: int | None = None
    pause_s: float = 0.0


NORMAL = Behaviour()


@dataclass
class FakeEndpoint:
    """Answers completions and chats, streamed."""

    num_tokens: int = 8
    behaviour: Callable[[int], Behaviour] = lambda number: NORMAL
    """Of the n-th request, from 0."""
    ready: bool = True
    """Whether any GET is answered with 200."""
    split_events: bool = False
    """Cut each event in two chunks, as a proxy may."""
    bodies: list[JsonObject] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    """Of the POSTs, in lower case."""
    cancelled: int = 0
    url: str = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length:")[2].split()[0]) if "post" in head else 0
            if not length:
                status = b"200 OK" if self.ready else b"503 No"
                writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n{}")
                return
            self.heads.append(head)
            self.bodies.append(orjson.loads(await reader.readexactly(length)))
            behaviour = self.behaviour(len(self.bodies) - 1)
            await self._answer(self.bodies[-1], behaviour, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            self.cancelled += 1
        finally:
            writer.close()

    async def _answer(
        self, body: JsonObject, behaviour: Behaviour, writer: asyncio.StreamWriter
    ) -> None:
        if behaviour.status != 200:
            content = orjson.dumps({"error": {"code": behaviour.code}} if behaviour.code else {})
            again = "Retry-After: 1\r\n" if behaviour.code else ""
            head = f"HTTP/1.1 {behaviour.status} No\r\n{again}Content-Length: {len(content)}"
            writer.write(f"{head}\r\n\r\n".encode() + content)
            return
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        choices = range(int(str(body.get("n") or 1)))
        for position, index in itertools.product(range(self._length(body)), choices):
            if position == behaviour.cut_after:
                writer.transport.abort()
                return
            if position == behaviour.error_after:
                self._send(
                    writer, {"error": {"message": "the engine has failed", "code": behaviour.code}}
                )
                return
            if position == behaviour.pause_after:
                await asyncio.sleep(behaviour.pause_s)
            self._send(writer, self._event(body, index, position, behaviour))
            await writer.drain()
        self._send(writer, b"[DONE]")
        writer.write(b"0\r\n\r\n")

    def _length(self, body: JsonObject) -> int:
        return min(self.num_tokens, int(str(body.get("max_tokens") or self.num_tokens)))

    def _event(
        self, body: JsonObject, index: int, position: int, behaviour: Behaviour
    ) -> JsonObject:
        key = orjson.dumps([body.get("prompt") or body.get("messages"), body.get("seed")])
        token = zlib.crc32(key + bytes([index, position])) % 4096
        logprob = -token / 4096 - (1e-12 if position == behaviour.change_logprob else 0.0)
        token += position == behaviour.change_token
        choice: JsonObject = {"index": index, "token_ids": [token]}
        choice["finish_reason"] = "length" if position == self._length(body) - 1 else None
        if "messages" in body:
            choice["delta"] = {"content": f"t{token} "}
            choice["logprobs"] = {"content": [{"token": f"t{token} ", "logprob": logprob}]}
        else:
            choice["text"] = f"t{token} "
            choice["logprobs"] = {"tokens": [f"t{token} "], "token_logprobs": [logprob]}
        return {"choices": [choice]}

    def _send(self, writer: asyncio.StreamWriter, event: JsonObject | bytes) -> None:
        data = event if isinstance(event, bytes) else orjson.dumps(event)
        payload = b"data: " + data + b"\n\n"
        middle = len(payload) // 2 if self.split_events else len(payload)
        for part in (payload[:middle], payload[middle:]):
            if part:
                writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")


@asynccontextmanager
async def fake_endpoint(endpoint: FakeEndpoint | None = None) -> AsyncIterator[FakeEndpoint]:
    """Serve on a free loopback port while the block runs."""
    endpoint = endpoint or FakeEndpoint()
    server = await asyncio.start_server(endpoint._serve, "127.0.0.1", 0)
    async with server:
        endpoint.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield endpoint
