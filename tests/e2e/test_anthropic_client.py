"""/v1/messages through the official `anthropic` client against a running server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import anthropic
import pytest
from anthropic.types import MessageParam, ToolParam

from cluster.errors import ShardFailedError
from tests.e2e.conftest import RunningServer, ScriptedServer

HI: list[MessageParam] = [{"role": "user", "content": "Say something."}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
WEATHER: ToolParam = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Bern"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@contextmanager
def client_of(server: RunningServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def client(server: RunningServer) -> Iterator[anthropic.Anthropic]:
    with client_of(server) as client:
        yield client


def say(server: ScriptedServer, text: str) -> None:
    ids = [*server.service.tokenizer.encode(text, add_special_tokens=False), 3]
    server.engine.script = lambda request: ids


def test_a_stream_gathers_to_the_whole_message(
    client: anthropic.Anthropic, server: RunningServer
) -> None:
    seed = {"seed": 2}
    whole = client.messages.create(
        model=server.model, max_tokens=8, messages=HI, system="Be brief.", extra_body=seed
    )
    with client.messages.stream(
        model=server.model, max_tokens=8, messages=HI, system="Be brief.", extra_body=seed
    ) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text == "".join(block.text for block in whole.content if block.type == "text")
    assert message.stop_reason == whole.stop_reason
    assert message.usage.output_tokens == whole.usage.output_tokens
    # A prefix cache may have had the prompt the second time.
    told = (message.usage, whole.usage)
    assert len({u.input_tokens + (u.cache_read_input_tokens or 0) for u in told}) == 1


def test_tokens_are_counted(client: anthropic.Anthropic, server: RunningServer) -> None:
    counted = client.messages.count_tokens(model=server.model, messages=HI, tools=[WEATHER])
    made = client.messages.create(model=server.model, max_tokens=1, messages=HI, tools=[WEATHER])
    cached = made.usage.cache_read_input_tokens or 0
    assert counted.input_tokens == made.usage.input_tokens + cached


def test_thought_and_tools_go_round(scripted_server: ScriptedServer) -> None:
    said = f"<think>\nhm\n</think>\n\nSo:\n{CALL}"
    say(scripted_server, said)
    with client_of(scripted_server) as client:
        with client.messages.stream(
            model="tiny", max_tokens=150, messages=HI, tools=[WEATHER]
        ) as stream:
            first = stream.get_final_message()
        thinking, text, use = first.content
        assert thinking.type == "thinking"
        assert text.type == "text"
        assert use.type == "tool_use"
        assert (thinking.thinking, text.text, use.input) == ("hm", "So:", {"city": "Rome"})
        assert first.stop_reason == "tool_use"
        say(scripted_server, "Warm.")
        again: list[MessageParam] = [
            *HI,
            {"role": "assistant", "content": first.content},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "It is."}],
            },
        ]
        second = client.messages.create(model="tiny", max_tokens=20, messages=again)
    assert second.stop_reason == "end_turn"
    ids = list(scripted_server.engine.requests[-1].prompt_ids)
    prompt = scripted_server.service.tokenizer.decode(ids, skip_special_tokens=False)
    assert f"{said}<|im_end|>" in prompt


def test_a_named_tool_is_used_with_input_of_its_schema(inline_process: RunningServer) -> None:
    with client_of(inline_process) as client:
        reply = client.messages.create(
            model="tiny",
            max_tokens=200,
            messages=HI,
            tools=[WEATHER],
            tool_choice={"type": "tool", "name": "weather"},
            extra_body={"seed": 1},
        )
    use = reply.content[-1]
    assert use.type == "tool_use"
    assert reply.stop_reason in ("tool_use", "max_tokens")
    if reply.stop_reason == "tool_use":
        assert json.loads(json.dumps(use.input))["city"] in ("Rome", "Bern")


def test_a_stop_sequence_is_told(scripted_server: ScriptedServer) -> None:
    say(scripted_server, "one two three")
    with client_of(scripted_server) as client:
        reply = client.messages.create(
            model="tiny", max_tokens=50, messages=HI, stop_sequences=["two"]
        )
    assert (reply.stop_reason, reply.stop_sequence) == ("stop_sequence", "two")
    assert reply.content[0].type == "text"
    assert reply.content[0].text == "one "


def test_errors_are_the_clients_own(client: anthropic.Anthropic, server: RunningServer) -> None:
    with pytest.raises(anthropic.NotFoundError, match="not served here"):
        client.messages.create(model="other", max_tokens=1, messages=HI)
    with pytest.raises(anthropic.BadRequestError, match="there are no containers"):
        client.messages.create(
            model=server.model, max_tokens=1, messages=HI, extra_body={"container": "c"}
        )


def test_an_error_in_a_stream_is_raised(scripted_server: ScriptedServer) -> None:
    scripted_server.engine.fail_after = 3
    scripted_server.engine.failure = ShardFailedError(1, "it is gone")
    with (
        client_of(scripted_server) as client,
        pytest.raises(anthropic.APIStatusError, match="it is gone"),
        client.messages.stream(model="tiny", max_tokens=20, messages=HI) as stream,
    ):
        stream.get_final_message()
