"""Admin routes: how the expert pool is, and how many shards, copies and ranks there shall be."""

from __future__ import annotations

import secrets
from dataclasses import asdict, replace
from typing import Protocol

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import AdminRefusedError, ConfigError, InvalidRequestError
from cluster.pool_messages import Target
from cluster.pool_status import OperationStatus, PoolStatus
from trinity_serve.admin_token import FILE_HEADER, AdminToken
from trinity_serve.api.auth import caller_of
from trinity_serve.api.errors import error_response

_LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


class ClusterAdmin(Protocol):
    """The pool and Serve, as these routes need them."""

    async def status(self) -> PoolStatus:
        """Return what there is to know about the shards."""

    async def scale(self, target: Target | None, operation_id: str) -> OperationStatus:
        """Lead to `target`, or to the configured one. Raises `ConfigError`."""

    async def scale_ranks(self, num_ranks: int) -> None:
        """Set the number of attention ranks. Raises `ConfigError`."""


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


def cluster_router(admin: ClusterAdmin, token: AdminToken) -> APIRouter:
    """Return GET /v1/cluster and POST /v1/cluster/scale."""
    router = APIRouter()

    @router.get("/v1/cluster")
    async def cluster(request: Request) -> Response:
        """Return shards, states, versions, coverage, moves and the last failures."""
        if refusal := _refusal(request, token):
            return refusal
        return JSONResponse(asdict(await admin.status()))

    @router.post("/v1/cluster/scale")
    async def scale(request: Request, body: ScaleRequest) -> Response:
        """Begin a change of scale; it goes on when this has answered."""
        if refusal := _refusal(request, token):
            return refusal
        operation = await _scale(admin, body)
        return JSONResponse(None if operation is None else asdict(operation), 202)

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
