"""/v1/responses through the official `openai` client against a running server."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest
from openai.types.responses import FunctionToolParam, Response, ResponseInputParam

from tests.e2e.conftest import RunningServer, ScriptedServer

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Bern"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def say(server: ScriptedServer, text: str) -> None:
    ids = [*server.service.tokenizer.encode(text, add_special_tokens=False), 3]
    server.engine.script = lambda request: ids


def ask_for_six(client: openai.OpenAI, server: RunningServer) -> Response:
    return client.responses.create(
        model=server.model, input="Say something.", max_output_tokens=6, extra_body={"seed": 2}
    )


def test_an_answer_has_text_status_and_usage(client: openai.OpenAI, server: RunningServer) -> None:
    reply = ask_for_six(client, server)
    assert reply.usage is not None
    assert 1 <= reply.usage.output_tokens <= 6
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    assert reply.status == ("incomplete" if reply.usage.output_tokens == 6 else "completed")
    chat = client.chat.completions.create(
        model=server.model,
        messages=[{"role": "user", "content": "Say something."}],
        max_tokens=6,
        seed=2,
    )
    assert reply.output_text == chat.choices[0].message.content


def test_a_stream_adds_up_to_the_whole_answer(client: openai.OpenAI, server: RunningServer) -> None:
    whole = ask_for_six(client, server)
    text, last = "", None
    for event in client.responses.create(
        model=server.model,
        input=[{"role": "user", "content": [{"type": "input_text", "text": "Say something."}]}],
        max_output_tokens=6,
        extra_body={"seed": 2},
        stream=True,
    ):
        if event.type == "response.output_text.delta":
            text += event.delta
        if event.type in ("response.completed", "response.incomplete"):
            last = event.response
    assert text == whole.output_text
    assert last is not None
    assert (last.usage, last.status) == (whole.usage, whole.status)


def test_the_clients_own_stream_gathers_the_answer(
    client: openai.OpenAI, server: RunningServer
) -> None:
    with client.responses.stream(
        model=server.model, input="Say something.", max_output_tokens=6, extra_body={"seed": 2}
    ) as stream:
        gathered = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
    assert gathered == ask_for_six(client, server).output_text


def test_a_conversation_goes_on_over_a_call_and_its_result(scripted_server: ScriptedServer) -> None:
    say(scripted_server, f"<think>\nhm\n</think>\n\n{CALL}")
    with openai.OpenAI(base_url=f"{scripted_server.url}/v1", api_key="none") as client:
        history: ResponseInputParam = [{"role": "user", "content": "Weather?"}]
        first = client.responses.create(model="tiny", input=history, tools=[WEATHER], store=False)
        thought, call = first.output
        assert thought.type == "reasoning"
        assert thought.content is not None
        assert thought.content[0].text == "hm"
        assert call.type == "function_call"
        assert json.loads(call.arguments) == {"city": "Rome"}
        history += [item.to_dict() for item in first.output]  # type: ignore[misc]
        history.append(
            {"type": "function_call_output", "call_id": call.call_id, "output": "It is warm."}
        )
        say(scripted_server, "Warm.")
        second = client.responses.create(model="tiny", input=history, instructions="Be brief.")
    assert second.output_text == "Warm."
    ids = list(scripted_server.engine.requests[-1].prompt_ids)
    prompt = scripted_server.service.tokenizer.decode(ids, skip_special_tokens=False)
    assert f"<think>\nhm\n</think>\n\n{CALL}<|im_end|>" in prompt
    assert "It is warm." in prompt


def test_a_required_call_and_a_schema_are_held_to(inline_process: RunningServer) -> None:
    schema: dict[str, object] = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}},
        "required": ["a"],
    }
    with openai.OpenAI(base_url=f"{inline_process.url}/v1", api_key="none") as client:
        calls = client.responses.create(
            model="tiny",
            input="Weather?",
            tools=[WEATHER],
            tool_choice={"type": "function", "name": "weather"},
            max_output_tokens=200,
        )
        held = client.responses.create(
            model="tiny",
            input="a?",
            text={"format": {"type": "json_schema", "name": "a", "schema": schema}},
            max_output_tokens=200,
            extra_body={"seed": 1},
        )
    call = calls.output[-1]
    assert call.type == "function_call"
    if calls.status == "completed":
        assert json.loads(call.arguments)["city"] in ("Rome", "Bern")
    if held.status == "completed":
        assert json.loads(held.output_text)["a"] in (1, 2)
    assert "completed" in (calls.status, held.status)


def test_a_stored_response_is_refused_with_the_reason(
    client: openai.OpenAI, server: RunningServer
) -> None:
    with pytest.raises(openai.BadRequestError, match="nothing is stored") as caught:
        client.responses.create(model=server.model, input="x", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"
