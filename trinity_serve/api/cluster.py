"""Admin routes: how the expert pool is, what it shall become, and orders about one shard."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from typing import Annotated, Protocol

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import AdminRefusedError, ConfigError, InvalidRequestError
from cluster.expert_map import ExpertMap
from cluster.pool_messages import ShardKey, Target
from cluster.pool_status import OperationStatus, PoolStatus
from trinity_serve.admin_token import FILE_HEADER, AdminToken
from trinity_serve.api.auth import caller_of
from trinity_serve.api.errors import error_response
from trinity_serve.api.expert_cache import ExpertCache
from trinity_serve.api.ranks import RankStatus

_LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


class ClusterAdmin(Protocol):
    """The pool and Serve, as these routes need them."""

    can_change_shards: bool
    """Whether shards can be killed, drained and scaled here."""

    async def status(self) -> PoolStatus:
        """Return what there is to know about the shards."""

    async def scale(self, target: Target | None, operation_id: str) -> OperationStatus:
        """Lead to `target`, or to the configured one. Raises `ConfigError`."""

    async def scale_ranks(self, num_ranks: int) -> None:
        """Set the number of attention ranks. Raises `ConfigError`."""

    async def ranks(self) -> list[RankStatus]:
        """Return the ranks that speak to this ingress."""

    async def experts(self) -> ExpertMap:
        """Return who holds which expert and where rows went lately."""

    async def kill_shard(self, shard: int, incarnation: int | None) -> ShardKey:
        """End a shard's process as a crash would. Raises `NoSuchShardError`, `ConfigError`."""

    async def drain_shard(self, shard: int, incarnation: int | None) -> ShardKey:
        """Begin to empty and replace a shard. Raises `NoSuchShardError`, `ConfigError`."""


class ScaleRequest(BaseModel):
    """What there shall be; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid", strict=True)

    shards: int | None = Field(default=None, ge=1)
    replicas: int | None = Field(default=None, ge=1)
    replica_bytes: int | None = Field(default=None, ge=0)
    """Of one copy more for the experts whose loss would cost most, over all shards."""
    ranks: int | None = Field(default=None, ge=1)
    auto: bool = False
    """Return to what the configuration says."""
    operation_id: str | None = Field(default=None, min_length=1, max_length=64)
    """The same id again asks after that operation; by default a new one."""


class ShardOrder(BaseModel):
    """Which life of a shard is meant."""

    model_config = ConfigDict(extra="forbid", strict=True)

    incarnation: int | None = Field(default=None, ge=0)
    """As GET /v1/cluster told; so that an order sent twice never hits its replacement."""


def cluster_router(admin: ClusterAdmin, token: AdminToken) -> APIRouter:
    """Return GET /v1/cluster and /v1/cluster/experts, and POST scale, kill and drain."""
    router = APIRouter()
    cache = ExpertCache(admin.experts)

    @router.get("/v1/cluster")
    async def cluster(request: Request) -> Response:
        """Return shards, states, versions, coverage, moves and the last failures."""
        if refusal := _refusal(request, token):
            return refusal
        status = asdict(await admin.status())
        status["ranks"] = [asdict(rank) for rank in await admin.ranks()]
        status["can_change_shards"] = admin.can_change_shards
        return JSONResponse(status)

    @router.get("/v1/cluster/experts")
    async def experts(
        request: Request, known: Annotated[str, Query(max_length=64)] = ""
    ) -> Response:
        """Return traffic and placement of every (layer, expert), at most a second old.

        `known`: the placement version that the caller has; its copies are then left out.
        """
        if refusal := _refusal(request, token):
            return refusal
        return Response(await cache.body(known), media_type="application/json")

    @router.post("/v1/cluster/scale")
    async def scale(request: Request, body: ScaleRequest) -> Response:
        """Begin a change of scale; it goes on when this has answered."""
        if refusal := _refusal(request, token):
            return refusal
        operation = await _scale(admin, body)
        return JSONResponse(None if operation is None else asdict(operation), 202)

    router.include_router(_order_router(admin, token))
    return router


def _order_router(admin: ClusterAdmin, token: AdminToken) -> APIRouter:
    """Return POST kill and drain of one shard."""
    router = APIRouter()

    @router.post("/v1/cluster/shards/{shard}/kill")
    async def kill(request: Request, shard: int, body: ShardOrder | None = None) -> Response:
        """End a shard's process at once, as a crash would; the pool then does as it always does."""
        return await ordered(request, admin.kill_shard, shard, body)

    @router.post("/v1/cluster/shards/{shard}/drain")
    async def drain(request: Request, shard: int, body: ShardOrder | None = None) -> Response:
        """Let the others take over what a shard holds, then end it and start another one."""
        return await ordered(request, admin.drain_shard, shard, body)

    async def ordered(
        request: Request,
        order: Callable[[int, int | None], Awaitable[ShardKey]],
        shard: int,
        body: ShardOrder | None,
    ) -> Response:
        if refusal := _refusal(request, token):
            return refusal
        try:
            key = await order(shard, None if body is None else body.incarnation)
        except ConfigError as error:
            raise InvalidRequestError("shard", str(error)) from error
        return JSONResponse({"shard": key.index, "incarnation": key.incarnation}, 202)

    return router


async def _scale(admin: ClusterAdmin, body: ScaleRequest) -> OperationStatus | None:
    pool = {"num_shards": body.shards, "num_replicas": body.replicas}
    pool["replica_bytes"] = body.replica_bytes
    asked = {key: number for key, number in pool.items() if number is not None}
    if body.auto and asked:
        raise InvalidRequestError("auto", "auto = true is not allowed together with a number.")
    if not body.auto and not asked and body.ranks is None:
        raise InvalidRequestError("shards", "Give shards, replicas, replica_bytes, ranks or auto.")
    operation_id = body.operation_id or secrets.token_hex(8)
    operation = None
    try:
        if body.auto:
            operation = await admin.scale(None, operation_id)
        elif asked:
            target = replace((await admin.status()).target, **asked)
            operation = await admin.scale(target, operation_id)
        if body.ranks is not None:
            await admin.scale_ranks(body.ranks)
    except ConfigError as error:
        raise InvalidRequestError(error.key, str(error)) from error
    return operation


def _refusal(request: Request, token: AdminToken) -> Response | None:
    """Return the answer to a caller who may not; a local one is told where the token is."""
    caller = caller_of(request.scope)
    if caller is not None and caller.is_admin:
        return None
    if request.client is None or request.client.host not in _LOOPBACK:
        return error_response(AdminRefusedError("this call comes from elsewhere"))
    if token.matches(request.headers.get("authorization", "").removeprefix("Bearer ")):
        return None
    error = AdminRefusedError(f"send the text of {token.path} as Authorization: Bearer")
    answer = error_response(error)
    answer.headers[FILE_HEADER] = str(token.path)
    return answer
