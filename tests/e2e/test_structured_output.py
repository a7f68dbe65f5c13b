"""Structured output and tools through the official client, over HTTP, with a real engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from openai.types.chat.completion_create_params import ResponseFormat

from tests.support.http import inline_server
from tests.support.serving import config_for

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say something."}]
SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "level": {"enum": [1, 2, 3]}},
    "required": ["mood", "level"],
    "additionalProperties": False,
}
FORMAT: ResponseFormat = {
    "type": "json_schema",
    "json_schema": {"name": "mood", "schema": SCHEMA, "strict": True},
}
TOOLS: list[ChatCompletionToolParam] = [
    {"type": "function", "function": {"name": "tell_mood", "parameters": SCHEMA, "strict": True}},
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object"}}},
]


@pytest.fixture(scope="module")
def client(tiny_checkpoint: Path) -> Iterator[openai.OpenAI]:
    with (
        inline_server(config_for(tiny_checkpoint, num_shards=2)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def valid(text: str | None, finish: str | None) -> bool:
    """Whether an output is valid; one that was cut short need not be."""
    if finish != "length":
        jsonschema.validate(json.loads(text or ""), SCHEMA)
    return finish != "length"


def test_every_choice_is_valid_and_streams_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model="checkpoint", messages=MESSAGES, response_format=FORMAT, n=4, seed=1, max_tokens=300
    )
    assert sum(valid(c.message.content, c.finish_reason) for c in whole.choices) >= 2
    texts = [""] * 4
    for chunk in client.chat.completions.create(
        model="checkpoint",
        messages=MESSAGES,
        response_format=FORMAT,
        n=4,
        seed=1,
        max_tokens=300,
        stream=True,
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_a_completion_is_one_of_the_choices(client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model="checkpoint",
        prompt=["a", "b"],
        n=3,
        max_tokens=30,
        extra_body={"structured_outputs": {"choice": ["yes", "no"]}},
    )
    assert {choice.text for choice in reply.choices} <= {"yes", "no"}
    assert {choice.finish_reason for choice in reply.choices} == {"stop"}


def test_a_stop_string_ends_a_held_output(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="checkpoint", messages=MESSAGES, response_format=FORMAT, stop=":", max_tokens=60
    )
    content = reply.choices[0].message.content or ""
    assert ":" not in content
    assert content.lstrip().startswith("{")


@pytest.mark.parametrize("seed", range(3))
def test_a_named_function_is_called_with_arguments_of_its_schema(
    client: openai.OpenAI, seed: int
) -> None:
    reply = client.chat.completions.create(
        model="checkpoint",
        messages=MESSAGES,
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "tell_mood"}},
        seed=seed,
        max_tokens=400,
    )
    choice = reply.choices[0]
    assert choice.message.tool_calls is not None
    [call] = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "tell_mood"
    assert valid(call.function.arguments, choice.finish_reason)
    assert choice.finish_reason == "tool_calls"


def test_a_required_call_streams_its_name_and_arguments(client: openai.OpenAI) -> None:
    name, arguments, finish = "", "", None
    for chunk in client.chat.completions.create(
        model="checkpoint",
        messages=MESSAGES,
        tools=TOOLS[:1],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=400,
        stream=True,
        seed=5,
    ):
        choice = chunk.choices[0]
        for call in choice.delta.tool_calls or []:
            assert call.function is not None
            name += call.function.name or ""
            arguments += call.function.arguments or ""
        finish = choice.finish_reason or finish
    assert name == "tell_mood"
    assert valid(arguments, finish)


def test_thought_that_the_prompt_opened_may_come_first(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="checkpoint",
        messages=MESSAGES,
        response_format=FORMAT,
        max_tokens=40,
        extra_body={"chat_template_kwargs": {"enable_thinking": True}},
    )
    choice = reply.choices[0]
    extra = choice.message.model_extra or {}
    assert extra.get("reasoning") or valid(choice.message.content, choice.finish_reason)


def test_hostile_schemas_are_bad_requests(client: openai.OpenAI) -> None:
    deep: dict[str, object] = {"type": "string"}
    for _ in range(70):
        deep = {"type": "array", "items": deep}
    hostile: list[dict[str, object]] = [
        deep,
        {"enum": [f"value {number}" for number in range(20_000)]},
        {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"oneOf": [{"type": "string", "pattern": "^a"}, {"type": "string", "pattern": "a$"}]},
    ]
    for schema in hostile:
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(
                model="checkpoint",
                messages=MESSAGES,
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": schema},
                },
                max_tokens=5,
            )
