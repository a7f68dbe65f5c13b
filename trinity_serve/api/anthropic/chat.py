"""A body of /v1/messages as the chat that it means."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from cluster.errors import InvalidRequestError
from trinity_serve.api.anthropic.schema import (
    MESSAGES_FIELDS,
    NESTED_FIELDS,
    Block,
    CountBody,
    CustomTool,
    MessagesBody,
    TextBlock,
    Thinking,
    ThinkingBlock,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
)
from trinity_serve.api.context import Api
from trinity_serve.api.schema import Body, ChatBody
from trinity_serve.api.translation import Fields, chat_body, engine_options

CHAT_NAMES = {
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "continue_final_message": "messages",
    "thinking_token_budget": "thinking.budget_tokens",
}
"""Chat's name of a field to this endpoint's."""
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_of(api: Api, body: CountBody) -> ChatBody:
    """Return the chat. Raises `InvalidRequestError` for what is known and not built."""
    _check_fields(api, body)
    messages = [message for turn in body.messages for message in _messages(turn)]
    if body.system:
        messages.insert(0, {"role": "system", "content": _text(body.system)})
    prefilled = body.messages[-1].role == "assistant"
    config = body.output_config
    schema = config.format.schema_ if config and config.format else None
    return chat_body(
        {
            **engine_options(body),
            "messages": messages,
            "tools": [_tool(tool) for tool in body.tools or ()] or None,
            "tool_choice": _tool_choice(body.tool_choice),
            "parallel_tool_calls": not _one_call(body.tool_choice),
            "max_tokens": body.max_tokens if isinstance(body, MessagesBody) else None,
            "stop": body.stop_sequences if isinstance(body, MessagesBody) else None,
            "reasoning_effort": config.effort if config else None,
            # An empty schema allows any JSON; it is not the same as none.
            "response_format": None
            if schema is None
            else {"type": "json_schema", "json_schema": {"schema": schema}},
            "continue_final_message": prefilled or None,
            "thinking_token_budget": body.thinking.budget_tokens if body.thinking else None,
            "chat_template_kwargs": _template_kwargs(api, body),
        }
    )


def _check_fields(api: Api, body: CountBody) -> None:
    api.fields.check(body.model_extra, table=MESSAGES_FIELDS)
    nested: list[tuple[str, Body]] = []
    for position, tool in enumerate(body.tools or ()):
        nested.append((f"tools.{position}.", tool))
    for position, turn in enumerate(body.messages):
        blocks = [] if isinstance(turn.content, str) else turn.content
        nested += [(f"messages.{position}.content.", block) for block in blocks]
    if isinstance(body.system, list):
        nested += [("system.", block) for block in body.system]
    nested += [("thinking.", body.thinking)] if body.thinking else []
    for path, part in nested:
        api.fields.check(part.model_extra, path, NESTED_FIELDS)


def _template_kwargs(api: Api, body: CountBody) -> Fields | None:
    thinking = body.thinking
    if thinking is None:
        return body.chat_template_kwargs
    thinks = thinking.type != "disabled"
    if thinks and not api.service.formats.reasoning:
        message = f"thinking = {thinking.type} is not supported: this model does not think."
        raise InvalidRequestError("thinking", message)
    _check_budget(thinking, body)
    return {**(body.chat_template_kwargs or {}), "enable_thinking": thinks}


def _check_budget(thinking: Thinking, body: CountBody) -> None:
    budget = thinking.budget_tokens
    if thinking.type == "disabled" and budget is not None:
        message = "thinking.budget_tokens is not allowed with type disabled: nothing is thought."
        raise InvalidRequestError("thinking.budget_tokens", message)
    if thinking.type == "enabled" and budget is None:
        message = "thinking.budget_tokens is required with type enabled."
        raise InvalidRequestError("thinking.budget_tokens", message)
    if budget is not None and isinstance(body, MessagesBody) and budget >= body.max_tokens:
        message = (
            f"thinking.budget_tokens = {budget} is not below max_tokens = {body.max_tokens}, "
            f"which bounds thought and answer together."
        )
        raise InvalidRequestError("thinking.budget_tokens", message)


def _messages(turn: Turn) -> list[Fields]:
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    if turn.role == "assistant":
        return [_assistant(turn.content)]
    messages: list[Fields] = []
    texts: list[TextBlock] = []
    for block in turn.content:
        if isinstance(block, ToolResultBlock):
            messages += _said(turn.role, texts)
            texts = []
            messages.append(_tool_result(block))
        elif isinstance(block, TextBlock):
            texts.append(block)
    return messages + _said(turn.role, texts) or [{"role": turn.role, "content": ""}]


def _said(role: str, texts: Sequence[TextBlock]) -> list[Fields]:
    return [{"role": role, "content": _text(texts)}] if texts else []


def _tool_result(block: ToolResultBlock) -> Fields:
    text = _text(block.content)
    # No chat template has a place for the mark, so the text says it.
    content = f"Error: {text}" if block.is_error else text
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}


def _assistant(blocks: Sequence[Block]) -> Fields:
    texts = [block for block in blocks if isinstance(block, TextBlock)]
    thoughts = [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]
    calls = [_call(block) for block in blocks if isinstance(block, ToolUseBlock)]
    message: Fields = {"role": "assistant", "content": _text(texts)}
    if thoughts:
        message["reasoning"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _call(block: ToolUseBlock) -> Fields:
    function = {"name": block.name, "arguments": orjson.dumps(block.input).decode()}
    return {"id": block.id, "type": "function", "function": function}


def _text(content: str | Sequence[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)


def _tool(tool: CustomTool) -> Fields:
    function: Fields = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoice | None) -> object:
    if choice is None:
        return None
    if choice.type != "tool":
        return _CHOICES[choice.type]
    if choice.name is None:
        message = "tool_choice.name is required with type tool."
        raise InvalidRequestError("tool_choice.name", message)
    return {"type": "function", "function": {"name": choice.name}}


def _one_call(choice: ToolChoice | None) -> bool:
    return bool(choice and choice.disable_parallel_tool_use)
