"""Chat replies taken apart: reasoning and tool calls, whole and streamed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import httpx
import orjson
import pytest

from tests.fakes.scripted_engine import ScriptedEngine
from tests.unit.trinity_serve.api.conftest import DEFAULTS
from trinity_serve.api.service import ModelService

Fields = dict[str, object]
PATH = "/v1/chat/completions"
WEATHER: Fields = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
TOOLS: Fields = {
    "messages": [{"role": "user", "content": "hi"}],
    "tools": [WEATHER],
    "ignore_eos": True,
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


@pytest.fixture(scope="module")
def service(tiny_checkpoint: Path) -> Iterator[ModelService]:
    """The model with room for tool definitions, one token for a few characters."""
    service = ModelService.from_folder(
        tiny_checkpoint, name="tiny", defaults=DEFAULTS, max_model_len=2000, vocab_size=512
    )
    yield service
    service.close()


@pytest.fixture
def say(engine: ScriptedEngine, service: ModelService) -> None:
    """Let the engine say a call after some thought, ended by an eos token."""
    set_text(engine, service, f"<think>\nhm {CALL}\n</think>\n\nSo:\n{CALL}\n{CALL}")


def set_text(engine: ScriptedEngine, service: ModelService, text: str) -> None:
    ids = service.tokenizer.encode(text, add_special_tokens=False)
    engine.script = lambda request: [*ids, 3]


async def whole(http: httpx.AsyncClient, body: Fields) -> Fields:
    response = await http.post(PATH, json=body)
    assert response.status_code == 200, response.text
    return cast(Fields, response.json()["choices"][0])


async def streamed(http: httpx.AsyncClient, body: Fields) -> tuple[Fields, list[Fields]]:
    """Return the message that the deltas add up to, and the choices of all chunks."""
    response = await http.post(PATH, json=body | {"stream": True})
    parts = response.text.split("\n\n")[:-2]
    choices = [orjson.loads(part.removeprefix("data: "))["choices"][0] for part in parts]
    message: Fields = {}
    calls: list[Fields] = []
    for choice in choices:
        for name, value in choice["delta"].items():
            if name == "tool_calls":
                for call in value:
                    add_call(calls, call)
            else:
                message[name] = str(message.get(name, "")) + value
    return message | ({"tool_calls": calls} if calls else {}), choices


def add_call(calls: list[Fields], delta: Fields) -> None:
    index = cast(int, delta["index"])
    if index == len(calls):
        assert str(delta["id"]).startswith("call_")
        assert delta["type"] == "function"
        calls.append({"name": "", "arguments": ""})
    for name, value in cast(dict[str, str], delta["function"]).items():
        calls[index][name] = str(calls[index][name]) + value


@pytest.mark.usefixtures("say")
class TestCalls:
    async def test_a_message_is_thought_content_and_calls(self, http: httpx.AsyncClient) -> None:
        choice = await whole(http, TOOLS | {"stop_token_ids": [3]})
        message = cast(Fields, choice["message"])
        calls = cast(list[Fields], message["tool_calls"])
        assert choice["finish_reason"] == "tool_calls"
        assert message["content"] == "So:"
        assert message["reasoning"] == message["reasoning_content"] == f"hm {CALL}"
        assert [call["function"] for call in calls] == [
            {"name": "weather", "arguments": '{"city": "Rome"}'}
        ] * 2
        assert len({str(call["id"]) for call in calls}) == 2
        assert all("index" not in call for call in calls)

    async def test_a_stream_adds_up_to_the_same(self, http: httpx.AsyncClient) -> None:
        message, choices = await streamed(http, TOOLS | {"stop_token_ids": [3]})
        assert message == {
            "role": "assistant",
            "content": "So:",
            "reasoning": f"hm {CALL}",
            "reasoning_content": f"hm {CALL}",
            "tool_calls": [{"name": "weather", "arguments": '{"city": "Rome"}'}] * 2,
        }
        assert choices[-1]["finish_reason"] == "tool_calls"
        assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)

    async def test_arguments_come_in_several_deltas(self, http: httpx.AsyncClient) -> None:
        _, choices = await streamed(http, TOOLS)
        deltas = [cast(Fields, choice["delta"]) for choice in choices]
        assert sum("tool_calls" in delta for delta in deltas) > 4

    async def test_one_call_only_when_asked(self, http: httpx.AsyncClient) -> None:
        choice = await whole(http, TOOLS | {"parallel_tool_calls": False})
        assert len(cast(list[Fields], cast(Fields, choice["message"])["tool_calls"])) == 1

    async def test_without_tools_or_with_choice_none_calls_are_text(
        self, http: httpx.AsyncClient, engine: ScriptedEngine, service: ModelService
    ) -> None:
        changes: list[Fields] = [{"tools": []}, {"tool_choice": "none"}]
        for change in changes:
            choice = await whole(http, TOOLS | change | {"stop_token_ids": [3]})
            message = cast(Fields, choice["message"])
            assert message["content"] == f"So:\n{CALL}\n{CALL}"
            assert choice["finish_reason"] == "stop"
            prompt = service.tokenizer.decode(
                list(engine.requests[-1].prompt_ids), skip_special_tokens=False
            )
            assert "weather" not in prompt

    async def test_tools_are_shown_to_the_model(
        self, http: httpx.AsyncClient, engine: ScriptedEngine, service: ModelService
    ) -> None:
        await whole(http, TOOLS)
        ids = list(engine.requests[-1].prompt_ids)
        prompt = service.tokenizer.decode(ids, skip_special_tokens=False)
        assert orjson.dumps(WEATHER).decode().replace(":", ": ").replace(",", ", ") in prompt

    async def test_thought_is_left_out_when_not_wanted(self, http: httpx.AsyncClient) -> None:
        choice = await whole(http, TOOLS | {"include_reasoning": False})
        assert "reasoning" not in cast(Fields, choice["message"])
        message, _ = await streamed(http, TOOLS | {"include_reasoning": False})
        assert message.keys() == {"role", "content", "tool_calls"}

    async def test_every_token_keeps_its_logprob(self, http: httpx.AsyncClient) -> None:
        body = TOOLS | {"logprobs": True, "return_token_ids": True}
        choice = await whole(http, body)
        _, choices = await streamed(http, body)
        logprobs = [cast(Fields, part["logprobs"]) for part in choices if part["logprobs"]]
        content = [entry for part in logprobs for entry in cast(list[Fields], part["content"])]
        assert content == cast(Fields, choice["logprobs"])["content"]


class TestThought:
    async def test_a_prompt_that_opens_thought_is_answered_by_thought(
        self, http: httpx.AsyncClient, engine: ScriptedEngine, service: ModelService
    ) -> None:
        set_text(engine, service, "hm\n</think>\n\nYes")
        body = {"messages": TOOLS["messages"], "chat_template_kwargs": {"enable_thinking": True}}
        message = cast(Fields, (await whole(http, body))["message"])
        assert (message["reasoning"], message["content"]) == ("hm", "Yes")

    async def test_thought_may_be_switched_off(
        self, http: httpx.AsyncClient, engine: ScriptedEngine, service: ModelService
    ) -> None:
        body = {
            "messages": TOOLS["messages"],
            "chat_template_kwargs": {"enable_thinking": False},
            "max_tokens": 1,
        }
        await whole(http, body)
        ids = list(engine.requests[-1].prompt_ids)
        assert "<think>" not in service.tokenizer.decode(ids, skip_special_tokens=False)

    async def test_a_message_that_was_taken_apart_renders_as_it_was_made(
        self, http: httpx.AsyncClient, engine: ScriptedEngine, service: ModelService
    ) -> None:
        said = f"<think>\nhm\n</think>\n\nYes\n{CALL}"
        set_text(engine, service, said)
        message = (await whole(http, TOOLS | {"stop_token_ids": [3]}))["message"]
        again = TOOLS | {"messages": [*cast(list[Fields], TOOLS["messages"]), message]}
        await whole(http, again | {"max_tokens": 1})
        ids = list(engine.requests[-1].prompt_ids)
        text = service.tokenizer.decode(ids, skip_special_tokens=False)
        assert f"assistant\n{said}<|im_end|>" in text


class TestRefusals:
    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"tool_choice": "always"}, "must be 'none', 'auto', 'required' or"),
            ({"tool_choice": {"type": "function"}}, "must be 'none', 'auto', 'required' or"),
            (
                {"tool_choice": {"type": "function", "function": {"name": "g"}}},
                "names 'g', which is not in tools; allowed: weather",
            ),
            ({"tools": [WEATHER, WEATHER]}, "'weather' more than once"),
            ({"tools": [WEATHER | {"type": "web"}]}, "should be 'function'"),
            (
                {"tools": [{"type": "function", "function": {"name": "a b"}}]},
                "should match pattern",
            ),
        ],
    )
    async def test_a_wrong_tool_is_refused_with_the_reason(
        self, http: httpx.AsyncClient, fields: Fields, words: str
    ) -> None:
        response = await http.post(PATH, json=TOOLS | fields)
        assert response.status_code == 400
        assert words in response.json()["error"]["message"]
