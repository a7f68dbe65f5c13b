"""An ingress's own HTTP port, in mode local: from it tokens go straight to the client.

Through Serve's proxy each token makes two more hops between processes, which cost more than all the
ingress does for it (DECISIONS.md). The proxy stays, on a port of its own; on a cluster, where it
stands on every node and chooses between ingresses, it is the way in.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvicorn
from ray.serve.metrics import Counter
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trinity_serve.addresses import listen
from trinity_serve.http_protocol import HttpProtocol

logger = logging.getLogger("ray.serve")
"""Serve's own: it writes into the file of the replica."""

END_STREAMS_S = 2


class OwnHttp:
    """Serves an application on a port; lives on one event loop."""

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        # Shared, for ingresses of one machine stand at the same address: the kernel chooses.
        self._socket = listen(host, port, shared=True)
        self._server = _Server(
            uvicorn.Config(
                _Seen(app),
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=END_STREAMS_S,
                http=HttpProtocol,
                ws="none",
                server_header=False,
            )
        )
        self._task = asyncio.create_task(
            self._server.serve(sockets=[self._socket]), name="own-http"
        )

    async def close(self) -> None:
        """Take no more connections, and end those that stand after a moment."""
        self._server.should_exit = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._task, 2 * END_STREAMS_S)
        self._socket.close()


class _Server(uvicorn.Server):
    """uvicorn, with signals left to Ray."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install nothing."""
        yield


class _Seen:
    """Shows requests where Serve shows those that came through its proxy: log and counter.

    The panels of Ray's Serve LLM dashboard name a process by that counter.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._counter = Counter("serve_deployment_request_counter", tag_keys=("route",))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun_s, started = time.monotonic(), Headers()
        status = "broken off"

        async def noting(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = str(message["status"]), Headers(raw=message["headers"])
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            self._counter.inc(1, {"route": "/"})
            logger.info(
                "%s %s %s %.1fms request %s",
                scope["method"],
                scope["path"],
                status,
                1000 * (time.monotonic() - begun_s),
                started.get("x-request-id", "-"),
            )
