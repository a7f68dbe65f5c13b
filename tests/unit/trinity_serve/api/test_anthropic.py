"""/v1/messages over a scripted engine: what becomes of a conversation, blocks, events, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import httpx
import pytest

from cluster.errors import OverloadedError, ShardFailedError
from tests.fakes.scripted_engine import ScriptedEngine
from tests.support.block_endpoints import (
    CALL,
    WEATHER_SCHEMA,
    BlockEndpoint,
    Fields,
    open_service,
    prompt_of,
    say,
)
from trinity_serve.api.service import ModelService

MESSAGES = BlockEndpoint("/v1/messages")
SAID = f"<think>\nhm\n</think>\n\nSo:\n{CALL}"
WEATHER: Fields = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": WEATHER_SCHEMA,
}
LONG: Fields = {"max_tokens": 1025}
HI: Fields = {"role": "user", "content": "hi"}
BODY: Fields = {"model": "tiny", "max_tokens": 1000, "messages": [HI], "tools": [WEATHER]}


@pytest.fixture(scope="module")
def service(tiny_checkpoint: Path) -> Iterator[ModelService]:
    with open_service(tiny_checkpoint, 4000) as service:
        yield service


@pytest.fixture(autouse=True)
def _said(engine: ScriptedEngine, service: ModelService) -> None:
    say(engine, service, SAID)


def content_of(reply: Fields) -> list[Fields]:
    return cast(list[Fields], reply["content"])


async def test_an_answer_is_blocks_of_thought_text_and_tool_use(http: httpx.AsyncClient) -> None:
    reply = await MESSAGES.whole(http, BODY)
    thinking, text, use = content_of(reply)
    assert (thinking["type"], thinking["thinking"]) == ("thinking", "hm")
    assert text == {"type": "text", "text": "So:"}
    assert (use["name"], use["input"]) == ("weather", {"city": "Rome"})
    assert (reply["stop_reason"], reply["stop_sequence"]) == ("tool_use", None)


async def test_input_is_counted_without_what_a_cache_had(
    http: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.num_cached_tokens = 2
    usage = cast(dict[str, int], (await MESSAGES.whole(http, BODY))["usage"])
    assert usage["cache_read_input_tokens"] == 2
    assert usage["input_tokens"] == len(engine.requests[0].prompt_ids) - 2


async def test_events_add_up_to_the_whole_message(http: httpx.AsyncClient) -> None:
    events = await MESSAGES.events(http, BODY)
    blocks: list[Fields] = []
    texts: list[str] = []
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(cast(Fields, event["content_block"]))
            texts.append("")
        elif event["type"] == "content_block_delta":
            delta = cast(dict[str, str], event["delta"])
            name = next(key for key in ("text", "thinking", "partial_json") if key in delta)
            texts[cast(int, event["index"])] += delta[name]
    assert [block["type"] for block in blocks] == ["thinking", "text", "tool_use"]
    assert texts == ["hm", "So:", '{"city": "Rome"}']
    assert events[0]["type"] == "message_start"
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    reply = await MESSAGES.whole(http, BODY)
    assert events[-2]["usage"] == reply["usage"]
    assert cast(Fields, events[-2]["delta"])["stop_reason"] == "tool_use"


async def test_what_was_said_goes_back_in_as_the_tokens_that_were_made(
    http: httpx.AsyncClient, engine: ScriptedEngine, service: ModelService
) -> None:
    blocks = content_of(await MESSAGES.whole(http, BODY))
    result = {
        "type": "tool_result",
        "tool_use_id": blocks[-1]["id"],
        "content": [{"type": "text", "text": "no such city"}],
        "is_error": True,
    }
    messages = [
        HI,
        {"role": "assistant", "content": blocks},
        {"role": "user", "content": [result, {"type": "text", "text": "and?"}]},
    ]
    await MESSAGES.whole(
        http, BODY | {"messages": messages, "system": [{"type": "text", "text": "Brief."}]}
    )
    prompt = prompt_of(engine, service)
    assert f"assistant\n{SAID}<|im_end|>" in prompt
    assert "<tool_response>\nError: no such city\n</tool_response>" in prompt
    assert "user\nand?<|im_end|>" in prompt
    assert "system\nBrief." in prompt


async def test_a_system_message_may_stand_among_the_others(
    http: httpx.AsyncClient, engine: ScriptedEngine, service: ModelService
) -> None:
    late = {"role": "system", "content": [{"type": "text", "text": "Be kind."}]}
    await MESSAGES.whole(http, BODY | {"messages": [HI, late, HI]})
    assert "system\nBe kind.<|im_end|>" in prompt_of(engine, service)


async def test_an_assistants_last_message_is_continued(
    http: httpx.AsyncClient, engine: ScriptedEngine, service: ModelService
) -> None:
    messages = [HI, {"role": "assistant", "content": "so fa"}]
    await MESSAGES.whole(http, BODY | {"messages": messages})
    assert prompt_of(engine, service).endswith("assistant\nso fa")


@pytest.mark.parametrize(
    ("fields", "reason", "sequence"),
    [
        ({"max_tokens": 3}, "max_tokens", None),
        ({"stop_sequences": ["o:"]}, "stop_sequence", "o:"),
        ({"tool_choice": {"type": "none"}}, "end_turn", None),
    ],
)
async def test_the_end_is_told_in_this_forms_words(
    http: httpx.AsyncClient, fields: Fields, reason: str, sequence: str | None
) -> None:
    reply = await MESSAGES.whole(http, BODY | fields)
    assert (reply["stop_reason"], reply["stop_sequence"]) == (reason, sequence)
    delta = (await MESSAGES.events(http, BODY | fields))[-2]["delta"]
    assert delta == {"stop_reason": reason, "stop_sequence": sequence}


async def test_arguments_cut_short_are_what_came(
    http: httpx.AsyncClient, engine: ScriptedEngine, service: ModelService
) -> None:
    say(engine, service, CALL.partition("me")[0])
    say(engine, service, CALL[: CALL.index("Rome") - 2])
    assert content_of(await MESSAGES.whole(http, BODY))[0]["input"] in ({}, {"city": None})
    say(engine, service, '<tool_call>{"name": "weather", "arguments": {city}}</tool_call>')
    assert content_of(await MESSAGES.whole(http, BODY))[0]["input"] == {"text": "{city}"}


async def test_thinking_is_switched_as_asked(
    http: httpx.AsyncClient, engine: ScriptedEngine, service: ModelService
) -> None:
    await MESSAGES.whole(
        http, BODY | {"thinking": {"type": "enabled", "budget_tokens": 1024}} | LONG
    )
    assert prompt_of(engine, service).endswith("<think>\n")
    limit = engine.requests[-1].params.thought
    assert limit is not None
    assert (limit.max_tokens, limit.begin) == (1024, "")
    await MESSAGES.whole(http, BODY | {"thinking": {"type": "disabled"}})
    assert "<think>" not in prompt_of(engine, service).rpartition("assistant")[2]
    assert engine.requests[-1].params.thought is None


async def test_tools_one_at_a_time_and_a_named_one(
    http: httpx.AsyncClient, engine: ScriptedEngine, service: ModelService
) -> None:
    say(engine, service, f"{CALL}\n{CALL}")
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    assert len(content_of(await MESSAGES.whole(http, BODY | {"tool_choice": choice}))) == 1
    assert len(content_of(await MESSAGES.whole(http, BODY))) == 2
    await MESSAGES.whole(http, BODY | {"tool_choice": {"type": "tool", "name": "weather"}})
    assert "weather" in engine.requests[-1].params.grammar


async def test_tokens_are_counted_as_they_are_sent(
    http: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    body = {name: value for name, value in BODY.items() if name != "max_tokens"}
    counted = (
        await http.post(f"{MESSAGES.path}/count_tokens", json=body | {"system": "Brief."})
    ).json()
    await MESSAGES.whole(http, BODY | {"system": "Brief."})
    assert counted == {"input_tokens": len(engine.requests[-1].prompt_ids)}


async def test_an_error_in_a_stream_is_its_last_event(
    http: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.fail_after, engine.failure = 4, ShardFailedError(1, "it is gone")
    last = (await MESSAGES.events(http, BODY))[-1]
    assert last["type"] == "error"
    assert "it is gone" in str(cast(Fields, last["error"])["message"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": []}, "messages"),
        ({"max_tokens": 0}, "greater than or equal to 1"),
        ({"max_completion_tokens": 5}, "it belongs to /v1/chat/completions"),
        ({"container": "c"}, "there are no containers"),
        ({"mcp_servers": [{"url": "http://x"}]}, "no other server is called"),
        ({"tools": [{"type": "web_search_20250305", "name": "s"}]}, "that the client runs; 0 is"),
        ({"tools": [WEATHER | {"defer_loading": True}]}, "tools are shown at once"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name is required"),
        ({"tool_choice": {"type": "tool", "name": "g"}}, "names 'g', which is not in tools"),
        ({"thinking": {"type": "enabled"}}, "budget_tokens is required"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "is not below max_tokens"),
        (
            {"thinking": {"type": "disabled", "budget_tokens": 1024}} | LONG,
            "budget_tokens is not allowed with type disabled",
        ),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, "thought is told whole"),
        ({"output_config": {"effort": "high"}}, "output_config.effort = high is not supported"),
        ({"stop_sequences": ["a", "b", "c", "d"]}, "stop_sequences has 4 strings"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "may hold text, tool_result with the role user; block 0 is 'image'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "is wrong in block 0, text",
        ),
        ({"max_tokens": 100_000}, "this model's context is 4000 tokens"),
    ],
)
async def test_what_is_wrong_or_not_built_is_refused_in_this_form(
    http: httpx.AsyncClient, fields: Fields, words: str
) -> None:
    response = await http.post(MESSAGES.path, json=BODY | fields)
    assert response.status_code == 400, response.text
    error = response.json()
    assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
    assert words in error["error"]["message"]


async def test_every_kind_of_error_has_its_type(
    http: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    async def kind(body: Fields) -> tuple[int, str]:
        response = await http.post(MESSAGES.path, json=body)
        return response.status_code, response.json()["error"]["type"]

    assert await kind(BODY | {"model": "other"}) == (404, "not_found_error")
    assert await kind(BODY | {"system": "x" * 20_000}) == (413, "request_too_large")
    engine.refusal = OverloadedError("engine", 4, 1.0)
    assert await kind(BODY) == (429, "rate_limit_error")
    engine.refusal = ValueError("unknown")
    assert await kind(BODY) == (500, "api_error")


async def test_labels_and_cache_marks_are_let_through(http: httpx.AsyncClient) -> None:
    marked = {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}
    messages = [{"role": "user", "content": [marked]}]
    fields: Fields = {"messages": messages, "metadata": {"user_id": "u"}, "service_tier": "auto"}
    assert (await MESSAGES.whole(http, BODY | fields))["type"] == "message"


async def test_an_empty_schema_is_a_schema(http: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 4,
        "output_config": {"format": {"type": "json_schema", "schema": {}}},
    }
    answer = await http.post(MESSAGES.path, json=body)
    assert answer.status_code == 200, answer.text
    assert engine.requests[-1].params.grammar
