"""The REST face as one FastAPI application, over any engine client."""

from __future__ import annotations

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

import trinity_serve
from trinity_serve.api.anthropic.route import anthropic_router
from trinity_serve.api.auth import Gate
from trinity_serve.api.chat import chat_router
from trinity_serve.api.completions import completions_router
from trinity_serve.api.connection import ConnectionMiddleware
from trinity_serve.api.context import Api
from trinity_serve.api.errors import install_error_handlers
from trinity_serve.api.limits import ApiLimits
from trinity_serve.api.metrics import ApiMetrics, MetricsMirror
from trinity_serve.api.page import page_router
from trinity_serve.api.responses.route import responses_router
from trinity_serve.api.service import ModelService
from trinity_serve.api.status import status_router
from trinity_serve.api.tokenization import tokenization_router
from trinity_serve.api.tracing import TraceMiddleware
from trinity_serve.engine.client import EngineClient
from trinity_serve.observe.tracing import Tracer


def create_app(
    client: EngineClient,
    service: ModelService,
    limits: ApiLimits,
    mirror: MetricsMirror | None = None,
    gate: Gate | None = None,
    tracer: Tracer | None = None,
) -> FastAPI:
    """Return the application that serves `service` through `client`.

    It holds no global state and starts nothing: uvicorn or a Serve ingress runs it, and the caller
    closes client and service. `mirror` gets what `/metrics` gets, as it happens. Without a `gate`
    there are no keys and callers of this machine are answered only; without a `tracer` nothing is
    traced. The caller closes it.
    """
    metrics = ApiMetrics(CollectorRegistry(), service.name, mirror)
    api = Api(client, service, limits, metrics)
    # The documentation pages of FastAPI load scripts from elsewhere; /openapi.json suffices.
    app = FastAPI(
        title="Trinity Serve",
        version=trinity_serve.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    if tracer is not None:
        # Before the next one, which thereby stands in front: strangers make no spans.
        app.add_middleware(TraceMiddleware, tracer=tracer)
    app.add_middleware(ConnectionMiddleware, limits=limits, gate=gate or Gate())
    install_error_handlers(app)
    app.include_router(status_router(api))
    app.include_router(completions_router(api))
    app.include_router(chat_router(api))
    app.include_router(responses_router(api))
    app.include_router(anthropic_router(api))
    app.include_router(tokenization_router(api))
    app.include_router(page_router())
    return app
