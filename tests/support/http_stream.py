"""A raw HTTP/1.1 client for streamed answers: cheap enough to share the machine with the server.

One connection per request, closed after it. Nothing here waits without the caller's deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import urlsplit

READ_BYTES = 1 << 16
LINE_LIMIT_BYTES = 1 << 20
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class BrokenStreamError(Exception):
    """The connection ended before the answer did, or what came is not HTTP."""


@dataclass(frozen=True)
class HttpAnswer:
    """An answer whose head has come."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    _reader: asyncio.StreamReader

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes. Raises BrokenStreamError when it is cut off."""
        try:
            if self.headers.get("transfer-encoding", "").lower() == "chunked":
                async for chunk in self._chunks():
                    yield chunk
            elif "content-length" in self.headers:
                yield await self._reader.readexactly(int(self.headers["content-length"]))
            else:
                while part := await self._reader.read(READ_BYTES):
                    yield part
        except (asyncio.IncompleteReadError, ValueError) as error:
            raise BrokenStreamError(f"the body was cut off: {error}") from error

    async def _chunks(self) -> AsyncIterator[bytes]:
        while size := int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readuntil(b"\r\n")

    async def read(self) -> bytes:
        """Return the whole body."""
        return b"".join([part async for part in self.parts()])

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the data of each server-sent event, the closing ``[DONE]`` too."""
        rest = b""
        async for part in self.parts():
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    yield line[5:].strip()


@asynccontextmanager
async def post(
    url: str, path: str, body: bytes, headers: Mapping[str, str] = NO_HEADERS
) -> AsyncIterator[HttpAnswer]:
    """Send a JSON body; yield the answer, and drop the connection after the block.

    An API key stands in the URL, as `http://:KEY@host`. Leaving the block early is a client that
    goes away. Raises OSError and BrokenStreamError.
    """
    parts = urlsplit(url)
    key = f"Authorization: Bearer {parts.password}\r\n" if parts.password else ""
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    reader, writer = await asyncio.open_connection(
        parts.hostname, parts.port, limit=LINE_LIMIT_BYTES
    )
    try:
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: {parts.hostname}\r\nConnection: close\r\n{key}{more}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        yield await _head(reader)
    finally:
        writer.transport.abort()


async def _head(reader: asyncio.StreamReader) -> HttpAnswer:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status_line, *lines = head.rstrip().split("\r\n")
        fields = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in fields}
        return HttpAnswer(int(status_line.split(" ")[1]), headers, reader)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise BrokenStreamError(f"no answer's head came: {error}") from error
    except (ValueError, IndexError) as error:
        raise BrokenStreamError(f"not an HTTP answer: {head[:80]!r}") from error
