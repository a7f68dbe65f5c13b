"""The way tokens come back: one long-lived stream per (ingress, rank), served by the ingress.

A message is a 4-byte little-endian length and a body. The rank's first body is its hello (token,
rank name); then come event messages, one per flush with the new tokens of all requests of that
ingress, and every half second the rank's state, which is the ping. Both ends live in asyncio;
nothing here blocks.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import struct
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import orjson

from cluster.errors import MalformedFrameError, TrinityError
from cluster.tls import TlsFiles, client_context, server_context
from trinity_serve.api.event_codec import (
    MAX_MESSAGE_BYTES,
    RankState,
    decode_events,
    decode_state,
    encode_events,
    encode_state,
)
from trinity_serve.api.reconnect import ReconnectPace
from trinity_serve.engine.request import TokenEvent

logger = logging.getLogger(__name__)

PING_INTERVAL_S = 0.5
SILENT_AFTER_S = 2.0
HELLO_TIMEOUT_S = 5.0
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class StreamAddress:
    """Where an ingress takes events; travels in the unary call, through Ray."""

    unix_path: str
    """Tried first: connecting proves that rank and ingress share a file system."""
    host: str
    port: int
    token: str

    def to_text(self) -> str:
        """Return the address as text, for those who only pass it on."""
        return orjson.dumps([self.unix_path, self.host, self.port, self.token]).decode()

    @classmethod
    def from_text(cls, text: str) -> StreamAddress:
        """Return the address that `to_text` wrote."""
        unix_path, host, port, token = orjson.loads(text)
        return cls(str(unix_path), str(host), int(port), str(token))


class StreamListener(Protocol):
    """What an ingress does with what its ranks say; called on the event loop."""

    def on_events(self, rank: str, events: list[TokenEvent]) -> None:
        """Take the next events of `rank`."""

    def on_state(self, rank: str, state: RankState) -> None:
        """Take what `rank` says of itself, every half second."""

    def on_connected(self, rank: str, connected: bool) -> None:
        """Take note that the stream of `rank` stands, or is lost."""


async def _read_message(reader: asyncio.StreamReader, timeout_s: float) -> bytes:
    async with asyncio.timeout(timeout_s):
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > MAX_MESSAGE_BYTES:
            raise MalformedFrameError(f"event message of {length} bytes; limit {MAX_MESSAGE_BYTES}")
        return await reader.readexactly(length)


class EventServer:
    """The ingress's end: accepts ranks and hands on what they say."""

    def __init__(self, token: str, listener: StreamListener, tls: TlsFiles | None = None) -> None:
        self._token = token
        self._listener = listener
        self._tls = tls
        self._servers: list[asyncio.Server] = []
        self._unix_path = ""
        self._connections: set[asyncio.Task[None]] = set()
        self._num_streams: Counter[str] = Counter()
        """By rank: one that reconnects may be heard again before its old stream's end is seen."""

    async def start(self, unix_path: str, bind_host: str, advertise_host: str) -> StreamAddress:
        """Listen on `unix_path` (its folder must be private) and on a free port of `bind_host`."""
        self._unix_path = unix_path
        self._servers.append(await asyncio.start_unix_server(self._serve, unix_path))
        context = None if self._tls is None else server_context(self._tls)
        tcp = await asyncio.start_server(self._serve, bind_host, 0, ssl=context)
        self._servers.append(tcp)
        port = tcp.sockets[0].getsockname()[1]
        return StreamAddress(unix_path, advertise_host, port, self._token)

    async def close(self) -> None:
        """Stop listening, drop all streams and remove the socket file."""
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        with suppress(FileNotFoundError):
            os.unlink(self._unix_path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._serve_rank(reader)
        except (OSError, asyncio.IncompleteReadError, TimeoutError, TrinityError) as error:
            logger.info("event stream ended: %s", error or type(error).__name__)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve_rank(self, reader: asyncio.StreamReader) -> None:
        rank = self._check_hello(await _read_message(reader, HELLO_TIMEOUT_S))
        self._num_streams[rank] += 1
        self._listener.on_connected(rank, True)
        try:
            while True:
                body = await _read_message(reader, SILENT_AFTER_S)
                if body.startswith(b"["):
                    self._listener.on_events(rank, decode_events(body))
                else:
                    self._listener.on_state(rank, decode_state(body))
        finally:
            self._num_streams[rank] -= 1
            if not self._num_streams[rank]:
                del self._num_streams[rank]
                self._listener.on_connected(rank, False)

    def _check_hello(self, body: bytes) -> str:
        try:
            token, rank = orjson.loads(body)
        except (ValueError, TypeError) as error:
            raise MalformedFrameError(f"event stream hello: {error}") from error
        if not hmac.compare_digest(str(token), self._token):
            raise MalformedFrameError("event stream hello: wrong token")
        return str(rank)


class EventSender:
    """The rank's end of one stream: connects, reconnects, and sends what comes in one message.

    What was written into a stream that then broke is lost; the ingress sees the gap and replays.
    `on_lost` is called when no stream stood for `reconnect.LOST_AFTER_S`: the ingress is gone, or
    refuses this rank, and with it goes everything it asked for.
    """

    def __init__(
        self,
        address: StreamAddress,
        rank: str,
        state: Callable[[], RankState],
        on_lost: Callable[[], None],
        tls: TlsFiles | None = None,
    ) -> None:
        self._address = address
        self._rank = rank
        self._state = state
        self._on_lost = on_lost
        self._tls = tls
        self._backlog: list[TokenEvent] = []
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="event-sender")

    def send(self, events: list[TokenEvent]) -> None:
        """Queue `events`; all that is queued in one turn of the loop goes out as one message."""
        self._backlog.extend(events)
        self._wake.set()

    async def close(self) -> None:
        """End the stream; what is still queued is dropped."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        pace = ReconnectPace(time.monotonic())
        while not pace.is_lost(time.monotonic()):
            lasted_s = await self._stream()
            await asyncio.sleep(pace.ended(lasted_s, time.monotonic()))
        self._on_lost()

    async def _stream(self) -> float:
        """Connect and send until the stream ends; return how many seconds it lasted."""
        try:
            writer = await self._connect()
        except (OSError, TimeoutError):
            return 0.0
        connected_at_s = time.monotonic()
        try:
            await self._pump(writer)
        except (OSError, TimeoutError) as error:
            logger.warning("event stream of %s broke: %s", self._rank, error)
        finally:
            writer.close()
        return time.monotonic() - connected_at_s

    async def _connect(self) -> asyncio.StreamWriter:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            try:
                _, writer = await asyncio.open_unix_connection(self._address.unix_path)
            except OSError:
                context = None if self._tls is None else client_context(self._tls)
                _, writer = await asyncio.open_connection(
                    self._address.host, self._address.port, ssl=context
                )
        self._write(writer, orjson.dumps([self._address.token, self._rank]))
        return writer

    async def _pump(self, writer: asyncio.StreamWriter) -> None:
        """Write states and events until the stream breaks (OSError) or is not read (timeout)."""
        pinged_at_s = -PING_INTERVAL_S
        while True:
            if time.monotonic() - pinged_at_s >= PING_INTERVAL_S:
                pinged_at_s = time.monotonic()
                self._write(writer, encode_state(self._state()))
            events, self._backlog = self._backlog, []
            if events:
                self._write(writer, encode_events(events))
            async with asyncio.timeout(SILENT_AFTER_S):
                await writer.drain()
            with suppress(TimeoutError):
                async with asyncio.timeout(PING_INTERVAL_S):
                    await self._wake.wait()
            self._wake.clear()

    @staticmethod
    def _write(writer: asyncio.StreamWriter, body: bytes) -> None:
        # uvloop closes at once when a write fails, and raises RuntimeError from the next one.
        if writer.is_closing():
            raise ConnectionResetError("the stream has been closed")
        writer.write(_LENGTH.pack(len(body)) + body)
