"""Every field that is known and not built is refused by its name, at every endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import BaseModel

from tests.fakes.scripted_engine import ScriptedEngine
from tests.support.block_endpoints import Fields, open_service, say
from trinity_serve.api.anthropic.schema import MESSAGES_FIELDS, MessagesBody
from trinity_serve.api.fields import GENERATION_FIELDS, FieldTable
from trinity_serve.api.responses.schema import RESPONSES_FIELDS, ResponsesBody
from trinity_serve.api.schema import ChatBody, CompletionBody
from trinity_serve.api.service import ModelService

Case = tuple[str, str]
"""Path and name of the field."""
HI = [{"role": "user", "content": "hi"}]
BODIES: dict[str, Fields] = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": HI, "max_tokens": 9},
}
SCHEMAS: dict[str, tuple[type[BaseModel], FieldTable]] = {
    "/v1/chat/completions": (ChatBody, GENERATION_FIELDS),
    "/v1/completions": (CompletionBody, GENERATION_FIELDS),
    "/v1/responses": (ResponsesBody, RESPONSES_FIELDS),
    "/v1/messages": (MessagesBody, MESSAGES_FIELDS),
}


def refused() -> Iterator[Case]:
    for path, (body, table) in SCHEMAS.items():
        fields = {field.alias or name for name, field in body.model_fields.items()}
        names = table.not_built.keys() | table.elsewhere - table.without_effect
        yield from ((path, name) for name in sorted(names - fields))


def neutral() -> Iterator[tuple[str, str, object]]:
    for path, name in refused():
        known = SCHEMAS[path][1].get(name)
        assert known is not None
        yield from ((path, name, value) for value in (*known.neutral, None))


@pytest.fixture(scope="module")
def service(tiny_checkpoint: Path) -> Iterator[ModelService]:
    with open_service(tiny_checkpoint, 200) as service:
        yield service


@pytest.fixture(autouse=True)
def _said(engine: ScriptedEngine, service: ModelService) -> None:
    say(engine, service, "so")


@pytest.mark.parametrize(("path", "name"), list(refused()))
async def test_a_field_that_is_not_built_is_a_bad_request_that_names_it(
    http: httpx.AsyncClient, engine: ScriptedEngine, path: str, name: str
) -> None:
    answer = await http.post(path, json=BODIES[path] | {name: "asks for something"})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["message"].startswith(f"{name} = 'asks for something' is not supported: ")
    assert error.get("param", name) == name
    assert engine.requests == []


@pytest.mark.parametrize(("path", "name", "value"), list(neutral()))
async def test_a_value_that_asks_for_nothing_is_let_through(
    http: httpx.AsyncClient, path: str, name: str, value: object
) -> None:
    answer = await http.post(path, json=BODIES[path] | {name: value})
    assert answer.status_code == 200, answer.text
