"""Servers that listen on loopback, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI

from tests.fakes.scripted_engine import ScriptedEngine
from tests.support.server import trinity_server
from trinity_serve.api.limits import ApiLimits
from trinity_serve.api.server import create_app
from trinity_serve.api.service import ModelService
from trinity_serve.http_protocol import HttpProtocol
from trinity_serve.model.generation_config import GenerationDefaults

START_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class RunningServer:
    """Where a server answers, and the one model it serves."""

    url: str
    model: str


@dataclass(frozen=True)
class ScriptedServer(RunningServer):
    """A server whose engine plays a script that the test may change."""

    engine: ScriptedEngine
    service: ModelService


def eventually(condition: Callable[[], bool], within_s: float) -> bool:
    """Return whether `condition` came true in time."""
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        if condition():
            return True
        threading.Event().wait(0.005)
    return condition()


def listening(app: FastAPI) -> AbstractContextManager[str]:
    """Serve `app` by uvicorn on a free loopback port; yield its URL."""
    return listening_with(app, HttpProtocol)


@contextmanager
def listening_with(app: FastAPI, protocol: type[HttpProtocol]) -> Iterator[str]:
    """Serve `app` as `listening` does, over this protocol."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, http=protocol)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        assert eventually(lambda: server.started, START_TIMEOUT_S), "uvicorn did not start"
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(START_TIMEOUT_S)
        listener.close()
        assert not thread.is_alive(), "uvicorn did not end"


@pytest.fixture
def scripted_server(tiny_checkpoint: Path) -> Iterator[ScriptedServer]:
    """A server whose tokens are known beforehand: it says the prompt again and again."""
    engine = ScriptedEngine()
    service = ModelService.from_folder(
        tiny_checkpoint,
        name="tiny",
        defaults=GenerationDefaults(eos_token_ids=(3,)),
        max_model_len=500,
        vocab_size=512,
    )
    limits = ApiLimits(request_timeout_s=30.0)
    with listening(create_app(engine, service, limits)) as url:
        yield ScriptedServer(url, "tiny", engine, service)
    service.close()


@pytest.fixture(scope="session")
def inline_process(tiny_checkpoint: Path) -> Iterator[RunningServer]:
    """`trinity serve` over three shards, as a process; one for every test that leaves it as it was.

    In float32 and with a batch smaller than what tests send at once.
    """
    model = ("--model", str(tiny_checkpoint), "--served-model-name", "tiny", "--dtype", "float32")
    sizes = ("--shards", "3", "--max-num-seqs", "8", "--kv-memory", "16MiB", "--threads", "1")
    with trinity_server([*model, *sizes], start_timeout_s=60.0) as process:
        yield RunningServer(process.url, "tiny")


@pytest.fixture(params=["scripted_server", "inline_process"])
def server(request: pytest.FixtureRequest) -> RunningServer:
    """The servers that tests for any engine run against: a scripted one and a real one."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, RunningServer)
    return found
