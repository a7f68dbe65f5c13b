"""/v1/responses over a scripted engine: what becomes of the input, items, events, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import httpx
import pytest

from cluster.errors import ShardFailedError
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

RESPONSES = BlockEndpoint("/v1/responses")
SAID = f"<think>\nhm {CALL}\n</think>\n\nSo:\n{CALL}"
WEATHER: Fields = {"type": "function", "name": "weather", "parameters": WEATHER_SCHEMA}
BODY: Fields = {"input": "hi", "tools": [WEATHER], "stop_token_ids": [3]}


@pytest.fixture(scope="module")
def service(tiny_checkpoint: Path) -> Iterator[ModelService]:
    with open_service(tiny_checkpoint, 2000) as service:
        yield service


@pytest.fixture(autouse=True)
def said(engine: ScriptedEngine, service: ModelService) -> list[int]:
    """What the engine says: thought, text and a call, ended by an eos token."""
    return say(engine, service, SAID)


def without_ids(value: object) -> object:
    """Return `value` without what is made anew for each reply."""
    if isinstance(value, dict):
        made = ("id", "call_id", "item_id", "created_at")
        return {name: without_ids(item) for name, item in value.items() if name not in made}
    return [without_ids(item) for item in value] if isinstance(value, list) else value


async def test_an_answer_is_items_of_thought_text_and_calls(http: httpx.AsyncClient) -> None:
    reply = await RESPONSES.whole(http, BODY)
    thought, message, call = cast(list[Fields], reply["output"])
    assert thought["content"] == [{"type": "reasoning_text", "text": f"hm {CALL}"}]
    assert cast(list[Fields], message["content"])[0]["text"] == "So:"
    assert (call["type"], call["name"]) == ("function_call", "weather")
    assert call["arguments"] == '{"city": "Rome"}'
    assert (reply["status"], reply["incomplete_details"], reply["store"]) == (
        "completed",
        None,
        False,
    )


async def test_usage_counts_thought_by_itself(
    http: httpx.AsyncClient, engine: ScriptedEngine, said: list[int], service: ModelService
) -> None:
    engine.num_cached_tokens = 2
    usage = cast(dict[str, int], (await RESPONSES.whole(http, BODY))["usage"])
    text = service.tokenizer.encode(f"So:\n{CALL}", add_special_tokens=False)
    assert usage["output_tokens"] == len(said)
    thought = cast(dict[str, int], usage["output_tokens_details"])["reasoning_tokens"]
    assert len(said) - len(text) - 3 <= thought <= len(said) - len(text)
    assert cast(dict[str, int], usage["input_tokens_details"])["cached_tokens"] == 2
    assert usage["total_tokens"] == usage["input_tokens"] + len(said)


async def test_events_add_up_to_the_whole_answer(http: httpx.AsyncClient) -> None:
    events = await RESPONSES.events(http, BODY)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] == "response.completed"
    assert without_ids(events[-1]["response"]) == without_ids(await RESPONSES.whole(http, BODY))
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == cast(Fields, events[-1]["response"])["output"]
    for kind, wanted in (
        ("response.reasoning_text.delta", f"hm {CALL}"),
        ("response.output_text.delta", "So:"),
        ("response.function_call_arguments.delta", '{"city": "Rome"}'),
    ):
        assert "".join(str(e["delta"]) for e in events if e["type"] == kind) == wanted


async def test_what_was_said_goes_back_in_as_the_tokens_that_were_made(
    http: httpx.AsyncClient, engine: ScriptedEngine, service: ModelService
) -> None:
    output = cast(list[Fields], (await RESPONSES.whole(http, BODY))["output"])
    result = {
        "type": "function_call_output",
        "call_id": output[-1]["call_id"],
        "output": [{"type": "input_text", "text": "warm"}],
    }
    again = [{"role": "user", "content": "hi"}, *output, result]
    await RESPONSES.whole(http, BODY | {"input": again, "instructions": "Be brief."})
    prompt = prompt_of(engine, service)
    assert f"assistant\n{SAID}<|im_end|>" in prompt
    assert "<tool_response>\nwarm\n</tool_response>" in prompt
    assert "system\nBe brief." in prompt


async def test_an_answer_cut_short_is_incomplete_and_says_why(http: httpx.AsyncClient) -> None:
    body = BODY | {"max_output_tokens": 5}
    reply = await RESPONSES.whole(http, body)
    assert (reply["status"], reply["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )
    assert cast(list[Fields], reply["output"])[-1]["status"] == "incomplete"
    assert (await RESPONSES.events(http, body))[-1]["type"] == "response.incomplete"


async def test_a_format_reaches_the_engine_as_a_grammar(
    http: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    text = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "integer"}}}
    await RESPONSES.whole(http, {"input": "hi", "text": text, "max_output_tokens": 4})
    assert "integer" in engine.requests[-1].params.grammar


async def test_engine_options_reach_the_engine(
    http: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    body = {"input": "hi", "temperature": 0.5, "top_k": 3, "seed": 7, "max_output_tokens": 2}
    await RESPONSES.whole(http, body)
    params = engine.requests[-1].params
    assert (params.temperature, params.top_k, params.seed, params.max_tokens) == (0.5, 3, 7, 2)


async def test_an_error_in_a_stream_is_an_event_and_a_failed_response(
    http: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.fail_after, engine.failure = 4, ShardFailedError(1, "it is gone")
    *_, error, failed = await RESPONSES.events(http, BODY)
    assert (error["type"], failed["type"]) == ("error", "response.failed")
    assert "it is gone" in str(error["message"])
    assert cast(Fields, failed["response"])["status"] == "failed"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": 5}, "it belongs to /v1/chat/completions"),
        ({"guided_json": {}}, "it belongs to /v1/chat/completions"),
        ({"previous_response_id": "resp_1"}, "nothing is stored; send the earlier items"),
        ({"conversation": "conv_1"}, "nothing is stored"),
        ({"background": True}, "nothing is stored that could be asked for later"),
        ({"top_logprobs": 2}, "use /v1/chat/completions"),
        ({"text": {"verbosity": "low"}}, "text.verbosity = 'low' is not supported"),
        ({"reasoning": {"summary": "detailed"}}, "thought is told whole"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort = high is not supported"),
        ({"tools": [{"type": "web_search"}]}, "may hold functions only; 0 is 'web_search'"),
        ({"tools": [WEATHER, WEATHER]}, "'weather' more than once"),
        ({"tool_choice": {"type": "mcp"}}, "must be 'none', 'auto', 'required' or"),
        ({"tool_choice": {"type": "function", "name": "g"}}, "names 'g', which is not in tools"),
        ({"input": []}, "must be text or a list of items"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "nothing is stored"),
        ({"input": [{"type": "image"}]}, "may hold message, reasoning, function_call"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "is wrong in item 0, call_id"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "must be text, or parts of type input_text",
        ),
        ({"input": "x" * 9000}, "this model's context is 2000 tokens"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "foo"}}}}, ""),
    ],
)
async def test_what_is_wrong_or_not_built_is_refused_by_name(
    http: httpx.AsyncClient, fields: Fields, words: str
) -> None:
    response = await http.post(RESPONSES.path, json=BODY | fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert words in error["message"]
    if "context" not in words:
        assert error["param"].split(".")[0] in fields


@pytest.mark.parametrize(
    "fields",
    [
        {"store": True},
        {"metadata": {"a": "b"}, "user": "me"},
        {"include": ["reasoning.encrypted_content"], "truncation": "disabled"},
        {"reasoning": {"summary": "auto"}, "service_tier": "auto"},
    ],
)
async def test_what_asks_for_nothing_is_let_through(
    http: httpx.AsyncClient, fields: Fields
) -> None:
    reply = await RESPONSES.whole(http, BODY | fields)
    assert (reply["store"], reply["metadata"]) == (False, fields.get("metadata", {}))
