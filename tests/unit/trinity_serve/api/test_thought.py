"""`thinking_token_budget` on its way to the engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fakes.scripted_engine import ScriptedEngine
from tests.support.block_endpoints import Fields, open_service, say
from trinity_serve.api.limits import ApiLimits
from trinity_serve.api.server import create_app
from trinity_serve.api.service import ModelService
from trinity_serve.engine.request import ThoughtLimit
from trinity_serve.model.generation_config import GenerationDefaults

PATH = "/v1/chat/completions"
BODY: Fields = {"messages": [{"role": "user", "content": "hi"}], "thinking_token_budget": 7}
OPENED: Fields = {"chat_template_kwargs": {"enable_thinking": True}}


@pytest.fixture(scope="module")
def service(tiny_checkpoint: Path) -> Iterator[ModelService]:
    with open_service(tiny_checkpoint, 200) as service:
        yield service


@pytest.fixture(autouse=True)
def _said(engine: ScriptedEngine, service: ModelService) -> None:
    say(engine, service, "so")


async def limit_of(
    http: httpx.AsyncClient, engine: ScriptedEngine, body: Fields
) -> ThoughtLimit | None:
    answer = await http.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    return engine.requests[-1].params.thought


@pytest.mark.parametrize(("fields", "begin"), [(OPENED, ""), ({}, "<think>")])
async def test_a_budget_counts_from_where_the_block_begins(
    http: httpx.AsyncClient, engine: ScriptedEngine, fields: Fields, begin: str
) -> None:
    limit = await limit_of(http, engine, BODY | fields)
    assert limit is not None
    assert (limit.max_tokens, limit.begin, limit.end) == (7, begin, "</think>")


async def test_what_is_forced_is_the_end_as_the_template_writes_it(
    http: httpx.AsyncClient, engine: ScriptedEngine, service: ModelService
) -> None:
    limit = await limit_of(http, engine, BODY)
    assert limit is not None
    forced = service.tokenizer.decode(list(limit.end_ids), skip_special_tokens=False)
    assert forced == "\n</think>\n\n"


async def test_without_a_budget_there_is_no_limit(
    http: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    assert await limit_of(http, engine, BODY | {"thinking_token_budget": None}) is None


@pytest.mark.parametrize("budget", [-1, 1.5, "7", True])
async def test_a_budget_is_a_count(http: httpx.AsyncClient, budget: object) -> None:
    answer = await http.post(PATH, json=BODY | {"thinking_token_budget": budget})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "thinking_token_budget"


async def test_a_model_that_does_not_think_refuses_a_budget(
    tiny_checkpoint: Path, engine: ScriptedEngine
) -> None:
    service = ModelService.from_folder(
        tiny_checkpoint,
        name="tiny",
        defaults=GenerationDefaults(eos_token_ids=(3,)),
        max_model_len=200,
        vocab_size=512,
        reasoning_parser="none",
    )
    transport = httpx.ASGITransport(create_app(engine, service, ApiLimits()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        answer = await http.post(PATH, json=BODY)
    service.close()
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "thinking_token_budget"
    assert "this model does not think" in error["message"]
