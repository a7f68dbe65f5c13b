"""The body of POST /v1/responses, and what becomes of the names that it has no field for."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, ValidationError, WrapValidator
from pydantic_core.core_schema import ValidatorFunctionWrapHandler

from trinity_serve.api.fields import WITHOUT_EFFECT, FieldTable, NotBuilt
from trinity_serve.api.schema import Body, EngineOptions, Stop, StructuredOutputs, TextPart
from trinity_serve.api.translation import NAMES_OF_CHAT

_BUILT_IN = "there are no built-in tools, only functions"


def _parts(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    try:
        return handler(value)
    except ValidationError:
        raise ValueError("must be text, or parts of type input_text, output_text or refusal") from (
            None
        )


class RefusalPart(Body):
    """What an assistant said in place of an answer."""

    type: Literal["refusal"]
    refusal: str


Content = Annotated[str | list[TextPart | RefusalPart], WrapValidator(_parts)]


class MessageItem(Body):
    """A message; the type may be left out."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Content


class ReasoningText(Body):
    """A part of thought, or of its summary."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(Body):
    """Thought of an earlier answer."""

    type: Literal["reasoning"]
    content: list[ReasoningText] | None = None
    summary: list[ReasoningText] | None = None


class CallItem(Body):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class CallOutputItem(Body):
    """What a called function returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content


Item: TypeAlias = MessageItem | ReasoningItem | CallItem | CallOutputItem
_ITEMS: dict[str, type[Body]] = {
    "message": MessageItem,
    "reasoning": ReasoningItem,
    "function_call": CallItem,
    "function_call_output": CallOutputItem,
}


def _input(value: object, _: ValidatorFunctionWrapHandler) -> object:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError("must be text or a list of items, not an empty one")
    return [_item(position, item) for position, item in enumerate(value)]


def _item(position: int, item: object) -> Body:
    """Read one item by its type: pydantic would tell the problems of every type there is."""
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if kind == "item_reference":
        raise ValueError(f"may not refer to stored items, as {position} does: nothing is stored")
    if not isinstance(kind, str) or kind not in _ITEMS:
        allowed = ", ".join(_ITEMS)
        raise ValueError(f"may hold {allowed}; item {position} is {ascii(kind)[:40]}")
    try:
        return _ITEMS[kind].model_validate(item, strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        path = ".".join(map(str, problem["loc"]))
        raise ValueError(f"is wrong in item {position}, {path}: {problem['msg']}") from None


class FunctionTool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None


def _tools(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    for position, tool in enumerate(value if isinstance(value, list) else []):
        kind = tool.get("type") if isinstance(tool, dict) else tool
        if kind != "function":
            raise ValueError(f"may hold functions only; {position} is {ascii(kind)[:40]}")
    return handler(value)


class NamedFunction(Body):
    """The one function that has to be called."""

    type: Literal["function"]
    name: str


def _tool_choice(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    try:
        return handler(value)
    except ValidationError:
        message = "must be 'none', 'auto', 'required' or {'type': 'function', 'name': …}"
        raise ValueError(message) from None


class TextFormat(Body):
    """What the answer is held to."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, object] | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextOptions(Body):
    """The form of the answer's text."""

    format: TextFormat | None = None


class ReasoningOptions(Body):
    """How much is thought."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None


class ResponsesBody(EngineOptions):
    """POST /v1/responses."""

    input: Annotated[str | list[Item], WrapValidator(_input)]
    include_stop_str_in_output: bool | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    stop: Stop = None
    store: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    text: TextOptions | None = None
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | NamedFunction | None, WrapValidator(_tool_choice)
    ] = None
    tools: Annotated[list[FunctionTool] | None, WrapValidator(_tools)] = None
    chat_template_kwargs: dict[str, object] | None = None


RESPONSES_FIELDS = FieldTable(
    MappingProxyType(
        {
            "access_programs": NotBuilt("there are none"),
            "background": NotBuilt("nothing is stored that could be asked for later", (False,)),
            "background_options": NotBuilt("nothing is stored that could be asked for later"),
            "context_management": NotBuilt("contexts are not compacted"),
            "conversation": NotBuilt("nothing is stored; send the earlier items as input"),
            "image": NotBuilt("only text goes in and out"),
            "include": NotBuilt(
                "thought is told in the open, all else by /v1/chat/completions",
                ([], ["reasoning.encrypted_content"]),
            ),
            "max_tool_calls": NotBuilt(_BUILT_IN),
            "moderation": NotBuilt("contents are not judged"),
            "previous_response_id": NotBuilt("nothing is stored; send the earlier items as input"),
            "enable_response_messages": NotBuilt("use return_token_ids of chat", (False,)),
            "previous_input_messages": NotBuilt("send the earlier items as input", ([],)),
            "previous_response": NotBuilt("send the earlier items as input"),
            "prompt": NotBuilt("no prompts are stored"),
            "service_tier": NotBuilt("there is one tier", ("auto", "default")),
            "stream_options": NotBuilt(
                "chunks are not padded", ({}, {"include_obfuscation": False})
            ),
            "top_logprobs": NotBuilt("use /v1/chat/completions", (0,)),
            "truncation": NotBuilt("an input that is too long is refused", ("disabled",)),
        }
    ),
    WITHOUT_EFFECT,
    NAMES_OF_CHAT,
)
NESTED_FIELDS = FieldTable(
    MappingProxyType(
        {
            "verbosity": NotBuilt("the model has no such switch", ("medium",)),
            "summary": NotBuilt("thought is told whole, not summarised", ("auto",)),
            "generate_summary": NotBuilt("thought is told whole, not summarised", ("auto",)),
            "context": NotBuilt("the chat template decides", ("auto",)),
            "mode": NotBuilt("there is one mode", ("standard",)),
            "defer_loading": NotBuilt("tools are shown at once", (False,)),
            "async": NotBuilt("calls wait for the client", (False,)),
            "allowed_callers": NotBuilt("the model calls, nobody else", (["direct"],)),
            "output_schema": NotBuilt("results are not checked"),
        }
    )
)
"""Of `text`, `reasoning` and of a function."""
