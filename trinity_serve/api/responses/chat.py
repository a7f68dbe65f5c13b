"""A body of /v1/responses as the chat that it means."""

from __future__ import annotations

from collections.abc import Sequence

from trinity_serve.api.context import Api
from trinity_serve.api.responses.schema import (
    NESTED_FIELDS,
    RESPONSES_FIELDS,
    CallItem,
    CallOutputItem,
    Content,
    FunctionTool,
    Item,
    MessageItem,
    NamedFunction,
    ReasoningItem,
    RefusalPart,
    ResponsesBody,
    TextFormat,
)
from trinity_serve.api.schema import ChatBody
from trinity_serve.api.translation import Fields, chat_body, engine_options

CHAT_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
"""Chat's name of a field to this endpoint's."""


def chat_of(api: Api, body: ResponsesBody) -> ChatBody:
    """Return the chat. Raises `InvalidRequestError` for what is known and not built."""
    _check_fields(api, body)
    messages = _messages(body.input)
    if body.instructions:
        messages.insert(0, {"role": "system", "content": body.instructions})
    text_format = body.text.format if body.text else None
    return chat_body(
        {
            **engine_options(body),
            "messages": messages,
            "tools": [_tool(tool) for tool in body.tools or ()] or None,
            "tool_choice": _tool_choice(body),
            "parallel_tool_calls": body.parallel_tool_calls,
            "max_tokens": body.max_output_tokens,
            "reasoning_effort": body.reasoning.effort if body.reasoning else None,
            "response_format": _response_format(text_format) if text_format else None,
            "structured_outputs": body.structured_outputs,
            "stop": body.stop,
            "include_stop_str_in_output": body.include_stop_str_in_output,
            "chat_template_kwargs": body.chat_template_kwargs,
        }
    )


def _check_fields(api: Api, body: ResponsesBody) -> None:
    api.fields.check(body.model_extra, table=RESPONSES_FIELDS)
    if body.text is not None:
        api.fields.check(body.text.model_extra, "text.", NESTED_FIELDS)
    if body.reasoning is not None:
        api.fields.check(body.reasoning.model_extra, "reasoning.", NESTED_FIELDS)
    for position, tool in enumerate(body.tools or ()):
        api.fields.check(tool.model_extra, f"tools.{position}.", NESTED_FIELDS)


def _messages(items: str | Sequence[Item]) -> list[Fields]:
    """Return messages: what an assistant thought, said and called in one turn is one of them."""
    if isinstance(items, str):
        return [{"role": "user", "content": items}]
    messages: list[Fields] = []
    for item in items:
        if isinstance(item, CallOutputItem):
            output = _text(item.output)
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": output})
        elif isinstance(item, MessageItem) and item.role != "assistant":
            messages.append({"role": item.role, "content": _text(item.content)})
        else:
            _add_to_turn(messages, item)
    return messages


def _add_to_turn(messages: list[Fields], item: MessageItem | ReasoningItem | CallItem) -> None:
    turn = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
    goes_on = turn is not None and (
        isinstance(item, CallItem)
        or (isinstance(item, MessageItem) and not turn["content"] and "tool_calls" not in turn)
    )
    if turn is None or not goes_on:
        turn = {"role": "assistant", "content": ""}
        messages.append(turn)
    if isinstance(item, MessageItem):
        turn["content"] = _text(item.content)
    elif isinstance(item, ReasoningItem):
        turn["reasoning"] = "".join(part.text for part in item.content or item.summary or ())
    else:
        calls = turn.setdefault("tool_calls", [])
        assert isinstance(calls, list)
        function = {"name": item.name, "arguments": item.arguments}
        calls.append({"id": item.call_id, "type": "function", "function": function})


def _text(content: Content) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(
        part.refusal if isinstance(part, RefusalPart) else part.text for part in content
    )


def _tool(tool: FunctionTool) -> Fields:
    function = tool.model_dump(include={"name", "description", "parameters", "strict"})
    told = {name: value for name, value in function.items() if value is not None}
    return {"type": "function", "function": told}


def _tool_choice(body: ResponsesBody) -> object:
    choice = body.tool_choice
    if isinstance(choice, NamedFunction):
        return {"type": "function", "function": {"name": choice.name}}
    return choice


def _response_format(text_format: TextFormat) -> Fields:
    if text_format.type != "json_schema":
        return {"type": text_format.type}
    schema = {"name": text_format.name, "schema": text_format.schema_}
    return {"type": "json_schema", "json_schema": schema}
