"""What the routes of one application share. Made by `create_app`; there are no globals."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute

from cluster.deadline import Deadline
from cluster.errors import ModelNotFoundError
from trinity_serve.api.fields import FieldCheck
from trinity_serve.api.limits import ApiLimits
from trinity_serve.api.metrics import ApiMetrics
from trinity_serve.api.service import ModelService
from trinity_serve.engine.client import EngineClient


def _random_seed() -> int:
    return secrets.randbits(63)


@dataclass(frozen=True)
class Api:
    """The engine, the model's text side, the limits, and the ingress's own books."""

    client: EngineClient
    service: ModelService
    limits: ApiLimits
    metrics: ApiMetrics
    fields: FieldCheck = field(default_factory=FieldCheck)
    new_seed: Callable[[], int] = _random_seed
    """For requests without a seed; the seed is kept with the request for replay."""
    wall_clock_s: Callable[[], float] = time.time

    def deadline(self) -> Deadline:
        """Return the one deadline of a request whose body has just arrived."""
        return Deadline.after(self.limits.request_timeout_s)

    def check_model(self, name: str | None) -> None:
        """Raise `ModelNotFoundError` for another model than the one served; None is that one."""
        if name is not None and name != self.service.name:
            raise ModelNotFoundError(name, self.service.name)


class _JsonRequest(Request):
    async def json(self) -> object:
        """Parse strictly: no NaN, no lone surrogates, bounded depth; and fast."""
        return orjson.loads(await self.body())


class JsonRoute(APIRoute):
    """A route whose JSON body is parsed by orjson."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[object, object, Response]]:
        """Wrap FastAPI's handler."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_JsonRequest(request.scope, request.receive))

        return handle
