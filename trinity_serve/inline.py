"""`inline` mode: checkpoint, shards, model, engine and REST in one process, without Ray.

The shards are reached through the in-process transport: the same dispatcher, frames and placement
as on a cluster, run by the engine's own thread. The simplest thing to debug.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import uvicorn
import uvloop
from fastapi import FastAPI
from tqdm import tqdm

from cluster.deadline import Deadline
from cluster.errors import ConfigError, NotReadyError
from cluster.load_stats import LoadStats
from cluster.metrics import Metrics
from cluster.placement import Placement, ShardInfo
from cluster.tls import edge_context
from cluster.transport.inproc import InprocTransport
from cluster.transport.session import Session, open_session
from cluster.types import PlacementVersion, ShardId, ShardSlice
from cluster.wire import Hello
from experts.checkpoint import Checkpoint
from experts.shard import ExpertShard, ShardIdentity
from experts.shard_loop import ShardLoop
from experts.store import ExpertStore
from trinity_serve.addresses import listen, url_of
from trinity_serve.admin_token import AdminToken
from trinity_serve.api.auth import gate_of
from trinity_serve.api.cluster import cluster_router
from trinity_serve.api.cors import allow_origins
from trinity_serve.api.limits import ApiLimits
from trinity_serve.api.server import create_app
from trinity_serve.api.service import ModelService
from trinity_serve.arithmetic import Arithmetic
from trinity_serve.config import ServeConfig
from trinity_serve.engine.engine import Engine
from trinity_serve.engine.inline_client import InlineClient
from trinity_serve.engine.step_watch import StepWatch
from trinity_serve.http_protocol import HttpProtocol
from trinity_serve.inline_admin import InlineAdmin
from trinity_serve.load_reporter import LoadReporter
from trinity_serve.model.generation_config import GenerationDefaults
from trinity_serve.observe.tracing import Traces
from trinity_serve.rank import (
    RankRunner,
    ShardAccess,
    build_rank,
    open_grammars,
    open_sampler,
    routing_recorder,
)
from trinity_serve.threads import num_cores, rank_threads

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 5.0
LOAD_REPORT_S = 0.5
"""How often the engine's thread tells where rows went: twice as often as the page asks."""
P = ParamSpec("P")
T = TypeVar("T")


class CallerExecutor(Executor):
    """Runs work at once, in the caller: in-process shards answer only when their rank lets them."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn` now; its outcome is in the returned future."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # what a thread would have put into the future
            future.set_exception(error)
        return future


@dataclass(frozen=True)
class InlineStack:
    """All of the server but HTTP."""

    client: InlineClient
    service: ModelService
    runner: RankRunner
    admin: InlineAdmin
    traces: Traces


class InprocShards:
    """The shards of one process: loaded, listening, and the placement that names them."""

    def __init__(self, config: ServeConfig, checkpoint: Checkpoint, arithmetic: Arithmetic) -> None:
        self._transport = InprocTransport()
        self._fingerprint = arithmetic.fingerprint
        count = config.experts.num_shards
        model = arithmetic.config
        if count > model.num_experts:
            raise ConfigError(
                "ServeConfig", "experts.num_shards", f"is {count}", f"1 to {model.num_experts}"
            )
        infos = []
        for index in range(count):
            store = ExpertStore.empty(model, arithmetic.kernels, arithmetic.dtype)
            with tqdm(unit="B", unit_scale=True, desc=f"shard {index + 1} of {count}") as bar:
                store.load_slice(checkpoint, ShardSlice(index, count), _progress_of(bar))
            infos.append(self._listen(index, store))
        self.placement = Placement.sliced(
            PlacementVersion(1, 1), tuple(infos), model.num_moe_layers, model.num_experts
        )

    def _listen(self, index: int, store: ExpertStore) -> ShardInfo:
        info = ShardInfo(ShardId(index), f"inproc:shard-{index}", secrets.randbits(48))
        identity = ShardIdentity(index, info.incarnation, self._fingerprint.model)
        listener = self._transport.listen(info.address)
        loop = ShardLoop(ExpertShard(identity, store), listener, self._fingerprint)
        listener.pump = lambda: loop.run_once(0.0)
        return info

    def connect(self, shard: ShardInfo, deadline: Deadline) -> Session:
        """Open a session to one of these shards."""
        hello = Hello(self._fingerprint, 0, 0, self.placement.version.epoch, "")
        return open_session(self._transport, shard.address, hello, deadline)


def _progress_of(bar: tqdm[None]) -> Callable[[int, int], None]:
    def progress(done_bytes: int, total_bytes: int) -> None:
        bar.total = total_bytes
        bar.update(done_bytes - bar.n)

    return progress


def build_stack(config: ServeConfig) -> InlineStack:
    """Load everything. Raises ConfigError and CheckpointError; blocks while weights load."""
    checkpoint = Checkpoint.open(config.model.path)
    arithmetic = Arithmetic.settle(config, checkpoint)
    arithmetic.kernels.set_threads(rank_threads(config, num_cores()))
    shards = InprocShards(config, checkpoint, arithmetic)
    access, metrics = ShardAccess(shards.connect, CallerExecutor()), Metrics()
    traces = Traces.open(config.observability, "inline")
    runner, engine_config = build_rank(config, checkpoint, arithmetic, access, metrics)
    runner.dispatcher.publish(shards.placement)

    # Before the recorder, which passes on to what was there.
    model = checkpoint.config
    load = LoadReporter(LoadStats(model.num_moe_layers, model.num_experts), LOAD_REPORT_S)
    runner.dispatcher.observe = load.observe

    def check_runner() -> None:
        missing = runner.dispatcher.missing()
        if missing:
            raise NotReadyError("; ".join(missing))

    engine = Engine(
        runner,
        engine_config,
        open_sampler(config),
        grammars=open_grammars(checkpoint),
        recorder=routing_recorder(runner, checkpoint.config),
        watch=StepWatch(metrics, traces.sink),
    )
    service = ModelService.from_folder(
        checkpoint.path,
        name=config.model.public_name,
        defaults=GenerationDefaults.load(checkpoint.path, checkpoint.config),
        max_model_len=engine_config.context_limit,
        vocab_size=checkpoint.config.vocab_size,
        tool_parser=config.ingress.tool_parser,
        reasoning_parser=config.ingress.reasoning_parser,
    )
    client = InlineClient(engine, check_runner, fingerprint=arithmetic.fingerprint.name)
    admin = InlineAdmin(shards.placement, client)
    load.listener = admin.reported
    return InlineStack(client, service, runner, admin, traces)


def serve_inline(config: ServeConfig, *, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; nothing that was started is left when this returns.

    `on_ready` is called with the endpoint's URL once `GET /ready` answers 200 there.
    Raises ConfigError when the address cannot be listened on.
    """
    listening = listen(config.ingress.host, config.ingress.port)
    with contextlib.closing(listening):
        stack = build_stack(config)
        uvloop.run(_serve(config, stack, listening, on_ready))


async def _serve(
    config: ServeConfig,
    stack: InlineStack,
    listening: socket.socket,
    on_ready: Callable[[str], None],
) -> None:
    limits, gate = ApiLimits.of(config.ingress), gate_of(config.security)
    tracer = stack.traces.tracer
    app = create_app(stack.client, stack.service, limits, gate=gate, tracer=tracer)
    allow_origins(app, config.ingress.cors_origins)
    app.root_path = config.ingress.root_path
    # A folder of its own: the nodes' would be shared by every server of the machine.
    folder = tempfile.TemporaryDirectory(prefix="trinity-inline-")
    app.include_router(cluster_router(stack.admin, AdminToken.open(Path(folder.name))))
    server = _Server(_uvicorn_config(config, app))
    await stack.client.start()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        await _until_ready(stack.client, server)
        if server.started:
            host, port = listening.getsockname()[:2]
            scheme = "http" if config.ingress.tls_cert_file is None else "https"
            on_ready(url_of(host, port, scheme))
        await serving
    finally:
        await stack.client.stop(Deadline.after(STOP_TIMEOUT_S))
        stack.traces.close()
        stack.service.close()
        folder.cleanup()


def _uvicorn_config(config: ServeConfig, app: FastAPI) -> uvicorn.Config:
    ingress = config.ingress
    made = uvicorn.Config(
        app,
        log_level="warning",
        lifespan="off",
        timeout_graceful_shutdown=2,
        http=HttpProtocol,
        ws="none",
        server_header=False,
        access_log=False,
    )
    if ingress.tls_cert_file is not None and ingress.tls_key_file is not None:
        context = edge_context(ingress.tls_cert_file, ingress.tls_key_file)
        made.ssl_context_factory = lambda *_: context
        made.ssl_certfile = ingress.tls_cert_file
    return made


async def _until_ready(client: InlineClient, server: _Server) -> None:
    while not server.should_exit:
        try:
            await client.ready()
        except NotReadyError as error:
            logger.debug("%s", error)
        else:
            if server.started:
                return
        await asyncio.sleep(0.02)


class _Server(uvicorn.Server):
    """uvicorn, with signals left to `_serve`."""

    def stop(self) -> None:
        """End serving: at once the second time."""
        self.force_exit = self.should_exit
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install nothing: uvicorn would raise the signal again at the end."""
        yield
