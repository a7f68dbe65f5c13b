"""A real server on loopback, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import uvicorn

from cluster.deadline import Deadline
from trinity_serve.api.limits import ApiLimits
from trinity_serve.api.server import create_app
from trinity_serve.config import ServeConfig
from trinity_serve.inline import InlineStack, build_stack

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0


@contextmanager
def inline_server(config: ServeConfig, limits: ApiLimits | None = None) -> Iterator[str]:
    """Serve `config`'s checkpoint with a real engine; yield the URL."""
    stack = build_stack(config)
    tracer = stack.traces.tracer
    app = create_app(stack.client, stack.service, limits or ApiLimits(), tracer=tracer)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
    )
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(_serve(server, stack, listener)))
        thread.start()
        try:
            _await_start(server)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(START_TIMEOUT_S)
            stack.service.close()
            stack.traces.close()
            assert not thread.is_alive(), "the server did not end"


async def _serve(server: uvicorn.Server, stack: InlineStack, listener: socket.socket) -> None:
    await stack.client.start()
    try:
        await server.serve(sockets=[listener])
    finally:
        await stack.client.stop(Deadline.after(STOP_TIMEOUT_S))


def _await_start(server: uvicorn.Server) -> None:
    deadline = Deadline.after(START_TIMEOUT_S)
    while not server.started:
        assert deadline.remaining_s() > 0.0, "uvicorn did not start"
        threading.Event().wait(0.005)
