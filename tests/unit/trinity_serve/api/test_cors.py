"""Pages of other origins: those that the configuration names may call, and read what they get."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.fakes.scripted_engine import ScriptedEngine
from trinity_serve.api.auth import Gate
from trinity_serve.api.cors import allow_origins
from trinity_serve.api.keys import KeyRing, hash_of, new_key
from trinity_serve.api.limits import ApiLimits
from trinity_serve.api.server import create_app
from trinity_serve.api.service import ModelService
from trinity_serve.config import ApiKeyRecord

PAGE = "https://chat.example.org"
KEY = new_key()
ALLOWED = "access-control-allow-origin"


@pytest.fixture
async def http(engine: ScriptedEngine, service: ModelService) -> AsyncIterator[httpx.AsyncClient]:
    gate = Gate(KeyRing((ApiKeyRecord(name="page", sha256=hash_of(KEY)),), None))
    app = create_app(engine, service, ApiLimits(), gate=gate)
    allow_origins(app, [PAGE])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def test_a_browser_may_ask_for_leave_without_a_key(http: httpx.AsyncClient) -> None:
    asked = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    answer = await http.options("/v1/chat/completions", headers=asked)
    assert answer.status_code == 200
    assert answer.headers[ALLOWED] == PAGE
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()


async def test_a_named_page_reads_answers_and_refusals(http: httpx.AsyncClient) -> None:
    for key, status in ((KEY, 200), ("wrong", 401)):
        headers = {"origin": PAGE, "authorization": f"Bearer {key}"}
        answer = await http.get("/v1/models", headers=headers)
        assert (answer.status_code, answer.headers[ALLOWED]) == (status, PAGE)
        assert "x-request-id" in answer.headers["access-control-expose-headers"]


async def test_another_page_is_not_allowed(http: httpx.AsyncClient) -> None:
    headers = {"origin": "https://other.example.org", "authorization": f"Bearer {KEY}"}
    answer = await http.get("/v1/models", headers=headers)
    assert ALLOWED not in answer.headers


async def test_without_origins_no_page_is_allowed(
    engine: ScriptedEngine, service: ModelService
) -> None:
    app = create_app(engine, service, ApiLimits())
    allow_origins(app, [])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get("/v1/models", headers={"origin": PAGE})
    assert answer.status_code == 200
    assert ALLOWED not in answer.headers


@pytest.mark.parametrize("kind", [{"content-type": "text/plain"}, {}])
async def test_a_body_that_a_page_may_send_without_leave_is_not_worked_on(
    http: httpx.AsyncClient, engine: ScriptedEngine, kind: dict[str, str]
) -> None:
    headers = {"authorization": f"Bearer {KEY}", **kind}
    body = b'{"prompt": "hi", "max_tokens": 2}'
    answer = await http.post("/v1/completions", content=body, headers=headers)
    assert answer.status_code == 400
    assert engine.requests == []
