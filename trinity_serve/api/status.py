"""Routes that say how the server is and what it serves."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

import trinity_serve
from cluster.errors import NotReadyError
from trinity_serve.api.context import Api
from trinity_serve.api.metrics import CONTENT_TYPE
from trinity_serve.engine.request import EngineStats


def status_router(api: Api) -> APIRouter:
    """Return /health, /ready, /metrics, /load, /version and the model list."""
    router = APIRouter()

    @router.get("/health")
    @router.get("/ping")
    async def health() -> dict[str, str]:
        """Say that the process answers; asks nobody else."""
        return {"status": "ok"}

    @router.get("/ready")
    async def ready(request: Request) -> dict[str, str]:
        """Say whether requests can be served now; 503 when not, with the reason if told."""
        try:
            await _ready(api)
        except NotReadyError as error:
            if request.state.tells_reasons:
                raise
            raise NotReadyError("the reason is told to callers with an API key") from error
        return {"status": "ready"}

    @router.get("/metrics")
    async def metrics() -> Response:
        """Return Prometheus text."""
        return Response(api.metrics.render(await _stats(api)), media_type=CONTENT_TYPE)

    @router.get("/load")
    async def load() -> dict[str, int]:
        """Return how many generations this ingress has open."""
        return {"server_load": api.metrics.num_open}

    @router.get("/version")
    async def version() -> dict[str, str]:
        """Return the version of this software."""
        return {"version": trinity_serve.__version__}

    @router.get("/v1/models")
    async def models() -> dict[str, object]:
        """List what is served."""
        return {"object": "list", "data": [_model(api)]}

    @router.get("/v1/models/{model_id:path}")
    async def model(model_id: str) -> dict[str, object]:
        """Describe one model."""
        api.check_model(model_id)
        return _model(api)

    return router


async def _ready(api: Api) -> None:
    timeout_s = api.limits.probe_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            await api.client.ready()
    except TimeoutError as error:
        raise NotReadyError(f"the engine did not answer within {timeout_s:g} s") from error


async def _stats(api: Api) -> EngineStats:
    timeout_s = api.limits.probe_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            return await api.client.stats()
    except TimeoutError as error:
        raise NotReadyError(f"the engine gave no numbers within {timeout_s:g} s") from error


def _model(api: Api) -> dict[str, object]:
    service = api.service
    return {
        "id": service.name,
        "object": "model",
        "created": service.created_s,
        "owned_by": "trinity-serve",
        "root": service.name,
        "parent": None,
        "max_model_len": service.max_model_len,
        "permission": [],
    }
