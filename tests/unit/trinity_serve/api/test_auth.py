"""Who may call which route, over the whole application."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.routing import Route

from cluster.errors import NotReadyError
from tests.fakes.scripted_engine import ScriptedEngine
from trinity_serve.api.auth import Gate, gate_of
from trinity_serve.api.keys import hash_of, new_key
from trinity_serve.api.limits import ApiLimits
from trinity_serve.api.server import create_app
from trinity_serve.api.service import ModelService
from trinity_serve.config.security import ApiKeyRecord, SecurityConfig

USER, ADMIN, BUSY = new_key(), new_key(), new_key()
RECORDS = (
    ApiKeyRecord(name="user", sha256=hash_of(USER)),
    ApiKeyRecord(name="operator", sha256=hash_of(ADMIN), scopes=("admin",)),
    ApiKeyRecord(
        name="busy",
        sha256=hash_of(BUSY),
        requests_per_minute=3,
        tokens_per_minute=100,
        max_concurrent_streams=2,
    ),
)
KEYS = SecurityConfig(api_keys=RECORDS, salt_prefix_cache_per_key=True)
PROMPT = {"model": "tiny", "prompt": [60, 61], "max_tokens": 2}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@asynccontextmanager
async def calling(
    engine: ScriptedEngine, service: ModelService, gate: Gate, host: str = "127.0.0.1"
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(engine, service, ApiLimits(), gate=gate)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(host, 4321))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture
async def guarded(
    engine: ScriptedEngine, service: ModelService
) -> AsyncIterator[httpx.AsyncClient]:
    async with calling(engine, service, gate_of(KEYS)) as client:
        yield client


def routes(engine: ScriptedEngine, service: ModelService) -> Iterator[tuple[str, str]]:
    app = create_app(engine, service, ApiLimits())
    for path, operations in app.openapi()["paths"].items():
        for method in operations:
            yield method.upper(), path.replace("{model_id}", "tiny")
    for route in app.routes:
        if isinstance(route, Route):
            yield "GET", route.path


async def test_every_route_but_the_probes_refuses_a_caller_without_a_key(
    guarded: httpx.AsyncClient, engine: ScriptedEngine, service: ModelService
) -> None:
    open_paths = set()
    others = {("GET", "/"), ("GET", "/page/main.js"), ("GET", "/nowhere"), ("POST", "/v1/nowhere")}
    for method, path in {*routes(engine, service)} | others:
        for headers in ({}, bearer("sk-wrong"), {"Authorization": "Basic eDp5"}, bearer("")):
            answer = await guarded.request(method, path, headers=headers)
            if answer.status_code != 401:
                open_paths.add(path)
                continue
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["x-request-id"]
            if not path.startswith("/v1/messages"):
                assert answer.json()["error"]["code"] == "invalid_api_key"
    # The page's own files hold no secrets; whatever they show, they ask for with the reader's key.
    assert open_paths == {"/health", "/ping", "/ready", "/", "/page/main.js"}
    assert engine.requests == []


async def test_the_page_is_for_reading_alone_without_a_key(guarded: httpx.AsyncClient) -> None:
    assert (await guarded.get("/page/main.js")).status_code == 200
    assert (await guarded.get("/", headers=bearer(ADMIN))).status_code == 200
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert (await guarded.request(method, "/")).status_code == 401
    assert (await guarded.get("/page")).status_code == 401


async def test_without_keys_the_page_too_is_for_this_machine_alone(
    engine: ScriptedEngine, service: ModelService
) -> None:
    async with calling(engine, service, Gate(), host="192.0.2.7") as elsewhere:
        assert (await elsewhere.get("/")).status_code == 403


async def test_readiness_gives_reasons_to_callers_with_a_key_only(
    guarded: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.not_ready = NotReadyError("shard 3 is missing")
    bare = await guarded.get("/ready")
    told = await guarded.get("/ready", headers=bearer(USER))
    assert (bare.status_code, told.status_code) == (503, 503)
    assert "shard 3" not in bare.text
    assert "shard 3" in told.text


@pytest.mark.parametrize(
    "header", [bearer(USER), {"x-api-key": USER}, {"authorization": f"bearer {USER}"}]
)
async def test_a_key_lets_in(guarded: httpx.AsyncClient, header: dict[str, str]) -> None:
    assert (await guarded.post("/v1/completions", json=PROMPT, headers=header)).status_code == 200
    assert (await guarded.get("/metrics", headers=header)).status_code == 200


async def test_a_key_without_the_scope_is_told_which_one(guarded: httpx.AsyncClient) -> None:
    refused = await guarded.post("/v1/completions", json=PROMPT, headers=bearer(ADMIN))
    assert refused.status_code == 403
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("permission_error", "insufficient_scope")
    assert "'inference'" in error["message"]
    assert (await guarded.get("/v1/cluster", headers=bearer(USER))).status_code == 403
    assert (await guarded.get("/metrics", headers=bearer(ADMIN))).status_code == 200


async def test_the_body_of_a_stranger_is_not_read(guarded: httpx.AsyncClient) -> None:
    read: list[bool] = []

    async def body() -> AsyncIterator[bytes]:
        read.append(True)
        yield b"{}"

    answer = await guarded.post("/v1/completions", content=body())
    assert answer.status_code == 401
    assert answer.headers["connection"] == "close"
    assert not read


async def test_logs_have_names_and_never_keys(
    guarded: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for key in (USER, "sk-not-a-key-at-all"):
        await guarded.post("/v1/completions", json=PROMPT, headers=bearer(key))
    assert "an unknown API key" in caplog.text
    for secret in (USER, hash_of(USER), "sk-not-a-key"):
        assert secret not in caplog.text


async def test_limits_are_told_in_headers_and_refused_with_a_time(
    guarded: httpx.AsyncClient,
) -> None:
    answers = [
        await guarded.post("/v1/completions", json=PROMPT, headers=bearer(BUSY)) for _ in range(4)
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    left = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]
    assert left == ["2", "1", "0", "0"]
    assert answers[0].headers["x-ratelimit-remaining-tokens"] in ("96", "98")
    assert 1 <= int(answers[3].headers["retry-after"]) <= 20
    error = answers[3].json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")


async def test_output_tokens_are_charged_when_a_request_ends(guarded: httpx.AsyncClient) -> None:
    long = PROMPT | {"max_tokens": 120}
    assert (
        await guarded.post("/v1/completions", json=long, headers=bearer(BUSY))
    ).status_code == 200
    refused = await guarded.post("/v1/completions", json=PROMPT, headers=bearer(BUSY))
    assert refused.status_code == 429
    assert "tokens per minute" in refused.json()["error"]["message"]


async def test_streams_at_once_are_bounded_and_a_key_that_left_has_its_room_back(
    guarded: httpx.AsyncClient,
) -> None:
    async def call(n: int) -> int:
        body = PROMPT | {"n": n, "max_tokens": 1}
        return (await guarded.post("/v1/completions", json=body, headers=bearer(BUSY))).status_code

    assert await call(3) == 400
    assert await call(2) == 200
    assert await call(2) == 200


async def test_keys_never_share_a_cached_prefix_when_salted(
    guarded: httpx.AsyncClient, engine: ScriptedEngine, service: ModelService
) -> None:
    for key in (USER, BUSY):
        for salt in (None, "s"):
            body = PROMPT | {"cache_salt": salt}
            await guarded.post("/v1/completions", json=body, headers=bearer(key))
    assert len({request.cache_salt for request in engine.requests}) == 4
    plain = ScriptedEngine()
    async with calling(plain, service, gate_of(SecurityConfig(api_keys=RECORDS))) as client:
        for key in (USER, BUSY):
            await client.post("/v1/completions", json=PROMPT, headers=bearer(key))
    assert {request.cache_salt for request in plain.requests} == {b""}


@pytest.mark.parametrize("host", ["10.0.0.8", "::ffff:10.0.0.8", "fe80::1%eth0", "somewhere"])
async def test_without_keys_other_machines_get_the_probes_only(
    engine: ScriptedEngine, service: ModelService, host: str
) -> None:
    async with calling(engine, service, Gate(), host) as client:
        refused = await client.post("/v1/completions", json=PROMPT)
        assert refused.status_code == 403
        assert "allow_unauthenticated_network_access" in refused.json()["error"]["message"]
        assert (await client.get("/ready")).status_code == 200
    async with calling(engine, service, Gate(open_to_network=True), host) as client:
        assert (await client.post("/v1/completions", json=PROMPT)).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1"])
async def test_without_keys_this_machine_is_served(
    engine: ScriptedEngine, service: ModelService, host: str
) -> None:
    async with calling(engine, service, Gate(), host) as client:
        assert (await client.post("/v1/completions", json=PROMPT)).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [{}, {"max_tokens": -1}, {"unknown_field": 1}, {"stop": ["x"] * 99}, {"stream": True}],
)
async def test_prompts_are_never_logged(
    guarded: httpx.AsyncClient,
    engine: ScriptedEngine,
    caplog: pytest.LogCaptureFixture,
    fields: dict[str, object],
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.INFO, "httpx")
    for fails in (False, True):
        engine.not_ready = NotReadyError("later") if fails else None
        said = {"prompt": "the secret plan", "max_tokens": 1} | fields
        await guarded.post("/v1/completions", json=said, headers=bearer(USER))
        chat = [{"role": "user", "content": "the secret plan"}]
        body = {"messages": chat, "max_tokens": 1} | fields
        await guarded.post("/v1/chat/completions", json=body, headers=bearer(USER))
    assert "secret plan" not in caplog.text


@pytest.mark.parametrize("stripped", [True, False], ids=["stripped", "kept"])
async def test_below_a_prefix_routes_ask_for_the_same_keys(
    engine: ScriptedEngine, service: ModelService, stripped: bool
) -> None:
    app = create_app(engine, service, ApiLimits(), gate=gate_of(KEYS))
    app.root_path = "/llm"
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=("127.0.0.1", 4321))
    base = "http://test" if stripped else "http://test/llm"
    async with httpx.AsyncClient(transport=transport, base_url=base) as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 401
        assert (await client.get("/v1/models", headers=bearer(USER))).status_code == 200
        for path in ("/v1/cluster", "/llm/v1/cluster", "//v1/cluster"):
            refused = await client.get(path, headers=bearer(USER))
            assert refused.status_code in (403, 404)
        assert (await client.get("/v1/cluster", headers=bearer(USER))).status_code == 403
        assert (await client.post("/v1/completions", json=PROMPT)).status_code == 401
        told = (await client.get("/openapi.json", headers=bearer(USER))).json()
        assert told["servers"] == [{"url": "/llm"}]
