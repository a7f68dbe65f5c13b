"""An ingress's own port: shared by ingresses of one machine, logged, and ended with its streams."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from trinity_serve.addresses import claim_port
from trinity_serve.own_http import OwnHttp

HOST = "127.0.0.1"


def app_of(name: str) -> Starlette:
    async def answer(request: Request) -> Response:
        return PlainTextResponse(name, headers={"X-Request-Id": f"of-{name}"})

    return Starlette(routes=[Route("/", answer)])


@pytest.fixture
async def port() -> int:
    return claim_port(HOST, 0)


@pytest.fixture
async def first(port: int) -> AsyncIterator[OwnHttp]:
    served = OwnHttp(app_of("first"), HOST, port)
    yield served
    await served.close()


async def answer(port: int) -> str:
    """Return an answer over a connection of its own."""
    async with httpx.AsyncClient() as client:
        return (await client.get(f"http://{HOST}:{port}/")).text


async def test_a_request_is_answered_and_logged_with_its_id(
    first: OwnHttp, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    serves_logger = logging.getLogger("ray.serve")
    serves_logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, "ray.serve"):
            assert await answer(port) == "first"
    finally:
        serves_logger.removeHandler(caplog.handler)
    (line,) = {text for record in caplog.records if "of-first" in (text := record.getMessage())}
    assert line.startswith("GET / 200 ")


async def test_the_next_ingress_answers_at_the_same_port_before_and_after_the_first_ends(
    first: OwnHttp, port: int
) -> None:
    second = OwnHttp(app_of("second"), HOST, port)
    seen = {await answer(port) for _ in range(64)}
    await first.close()
    assert seen == {"first", "second"}
    assert {await answer(port) for _ in range(8)} == {"second"}
    await second.close()
    with pytest.raises(httpx.ConnectError):
        await answer(port)
