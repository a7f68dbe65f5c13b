"""The HTTP face as a Serve deployment: the REST application over a `RankClient`.

It serves the stream on which ranks send tokens, and lets the pool tell them where that is.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import ray
from fastapi import FastAPI
from ray.exceptions import RayError, RayTaskError
from ray.serve.context import _set_request_context
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from cluster.errors import LinkLostError, NotReadyError, TrinityError
from cluster.expert_map import ExpertMap
from cluster.pool_messages import ShardKey, Target
from cluster.pool_status import OperationStatus, PoolStatus
from trinity_serve.addresses import own_hosts
from trinity_serve.admin_token import AdminToken
from trinity_serve.api.auth import gate_of
from trinity_serve.api.cluster import cluster_router
from trinity_serve.api.cors import allow_origins
from trinity_serve.api.event_stream import EventServer
from trinity_serve.api.limits import ApiLimits
from trinity_serve.api.ranks import RankStatus
from trinity_serve.api.server import create_app
from trinity_serve.api.service import ModelService
from trinity_serve.config import ServeConfig
from trinity_serve.engine.request import GenerationRequest
from trinity_serve.observe.tracing import Traces
from trinity_serve.own_http import OwnHttp
from trinity_serve.rank_attempt import CallWatcher
from trinity_serve.rank_call import GenerateCall
from trinity_serve.ray_client import RankClient
from trinity_serve.ray_metrics import IngressMetrics

logger = logging.getLogger("ray.serve")
"""Serve's own: it writes into the file of the replica, with the request's id."""

RENEW_SUBSCRIPTION_S = 5.0
POOL_ANSWER_S = 5.0


# Serve's responses and handles have no static type that mypy could follow.
Response = Any
Handle = Any


class _ServeCall:
    """A `RankCall` over Serve's response."""

    def __init__(self, response: Response) -> None:
        self._response = response

    async def result(self) -> None:
        """Wait for the call's end. Raises what the rank raised, or `LinkLostError`."""
        try:
            await self._response
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, TrinityError):
                raise cause from None
            raise LinkLostError("the attention rank", f"{cause}") from error
        except (RayError, RayServeException) as error:
            raise LinkLostError("the attention rank", f"{error}") from error

    def cancel(self) -> None:
        """Let the rank drop the choice."""
        self._response.cancel()


class _ServeRanks:
    """`Ranks` over Serve's handle; the router behind it chooses."""

    def __init__(self, handle: DeploymentHandle[None]) -> None:
        self._handle = handle
        self.reply_to = ""

    def call(self, request: GenerationRequest, watcher: CallWatcher) -> _ServeCall:
        """Start the call; never blocks."""
        return contextvars.copy_context().run(self._call_alone, request, watcher)

    def _call_alone(self, request: GenerationRequest, watcher: CallWatcher) -> _ServeCall:
        # Calls made for one HTTP request would all have its internal id, by which Serve's router
        # knows which of the waiting calls has found a rank: of several choices one would go on.
        _set_request_context(_internal_request_id=secrets.token_hex(16))
        handle = self._handle.options(session_id=request.session_id)
        return _ServeCall(handle.generate.remote(GenerateCall(request, self.reply_to, watcher)))


class _PoolAdmin:
    """`ClusterAdmin` over the pool's handle, and what ranks tell this ingress."""

    can_change_shards = True

    def __init__(self, pool: Handle, client: RankClient) -> None:
        self._pool = pool
        self._client = client

    async def status(self) -> PoolStatus:
        """See `ClusterAdmin`."""
        return cast(PoolStatus, await self._asked(self._pool.status.remote()))

    async def scale(self, target: Target | None, operation_id: str) -> OperationStatus:
        """See `ClusterAdmin`."""
        asked = self._pool.scale.remote(target, operation_id)
        return cast(OperationStatus, await self._asked(asked))

    async def scale_ranks(self, num_ranks: int) -> None:
        """See `ClusterAdmin`."""
        await self._asked(self._pool.scale_ranks.remote(num_ranks))

    async def ranks(self) -> list[RankStatus]:
        """See `ClusterAdmin`."""
        return self._client.ranks()

    async def experts(self) -> ExpertMap:
        """See `ClusterAdmin`."""
        return cast(ExpertMap, await self._asked(self._pool.experts.remote()))

    async def kill_shard(self, shard: int, incarnation: int | None) -> ShardKey:
        """See `ClusterAdmin`."""
        asked = self._pool.kill_shard.remote(shard, incarnation)
        return cast(ShardKey, await self._asked(asked))

    async def drain_shard(self, shard: int, incarnation: int | None) -> ShardKey:
        """See `ClusterAdmin`."""
        asked = self._pool.drain_shard.remote(shard, incarnation)
        return cast(ShardKey, await self._asked(asked))

    async def _asked(self, response: Response) -> object:
        try:
            async with asyncio.timeout(POOL_ANSWER_S):
                return await response
        except RayTaskError as error:
            if isinstance(error.cause, TrinityError):
                raise error.cause from None
            raise
        except (TimeoutError, RayError, RayServeException) as error:
            raise NotReadyError(f"the expert pool does not answer: {error}") from error


class Ingress:
    """One replica is one HTTP face."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        config: ServeConfig,
        open_service: Callable[[ServeConfig], ModelService],
        ranks: DeploymentHandle[None],
        pool: DeploymentHandle[None],
    ) -> None:
        self._config = config
        self._own_http: OwnHttp | None = None
        loop = asyncio.get_running_loop()
        self._service = await loop.run_in_executor(None, open_service, config)
        self._traces = Traces.open(config.observability, "ingress")
        self._pool = pool
        self._ranks = _ServeRanks(ranks)
        self._client = RankClient(self._ranks)
        self._events = EventServer(secrets.token_hex(16), self._client, config.security.link_tls)
        self._folder = Path(tempfile.mkdtemp(prefix="trinity-ingress-"))
        node_host = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        bind_host, advertise_host = own_hosts(config, node_host)
        address = await self._events.start(str(self._folder / "events"), bind_host, advertise_host)
        self._ranks.reply_to = address.to_text()
        self._subscription = asyncio.create_task(self._subscribe(), name="subscribe")

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application; called by Serve once this object is made."""
        ingress = self._config.ingress
        limits = ApiLimits.of(ingress)
        mirror = IngressMetrics(self._service.name)
        gate = gate_of(self._config.security)
        tracer = self._traces.tracer
        app = create_app(self._client, self._service, limits, mirror, gate, tracer)
        folder = ingress.admin_token_folder
        token = AdminToken.open(Path(folder or tempfile.gettempdir()))
        app.include_router(cluster_router(_PoolAdmin(self._pool, self._client), token))
        allow_origins(app, ingress.cors_origins)
        app.root_path = ingress.root_path
        if self._config.mode == "local":
            self._own_http = OwnHttp(app, ingress.host, ingress.port)
        return app

    async def _subscribe(self) -> None:
        """Let the pool know where this ingress takes events, again and again."""
        while True:
            try:
                await self._pool.subscribe.remote(self._ranks.reply_to)
                await asyncio.sleep(RENEW_SUBSCRIPTION_S)
            except (RayError, RayServeException) as error:
                logger.warning("the pool does not answer: %s", error)
                await asyncio.sleep(RENEW_SUBSCRIPTION_S / 10)

    async def __del__(self) -> None:
        """Close the streams and remove the socket."""
        self._subscription.cancel()
        if self._own_http is not None:
            await self._own_http.close()
        await self._events.close()
        await self._client.close()
        self._service.close()
        await asyncio.get_running_loop().run_in_executor(None, self._traces.close)
        shutil.rmtree(self._folder, ignore_errors=True)
