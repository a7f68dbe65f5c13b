"""The bodies of /v1/messages, and what becomes of the names that they have no field for."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, ValidationError, WrapValidator
from pydantic_core.core_schema import ValidatorFunctionWrapHandler

from trinity_serve.api.fields import FieldTable, NotBuilt
from trinity_serve.api.schema import Body, EngineOptions
from trinity_serve.api.translation import NAMES_OF_CHAT


class TextBlock(Body):
    """Text."""

    type: Literal["text"]
    text: str


class ThinkingBlock(Body):
    """Thought of an earlier answer; its signature is not looked at."""

    type: Literal["thinking"]
    thinking: str


class ToolUseBlock(Body):
    """A call that the model made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, object]


class ToolResultBlock(Body):
    """What a called tool returned."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextBlock] = ""
    is_error: bool | None = None


Block: TypeAlias = TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock
_BLOCKS: dict[str, dict[str, type[Body]]] = {
    "system": {"text": TextBlock},
    "user": {"text": TextBlock, "tool_result": ToolResultBlock},
    "assistant": {"text": TextBlock, "thinking": ThinkingBlock, "tool_use": ToolUseBlock},
}


def _message(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    """Read the blocks by their type: pydantic would tell the problems of every type there is."""
    role = value.get("role") if isinstance(value, dict) else None
    content = value.get("content") if isinstance(value, dict) else None
    if isinstance(role, str) and role in _BLOCKS and isinstance(content, list):
        assert isinstance(value, dict)
        blocks = [_block(role, position, block) for position, block in enumerate(content)]
        return handler({**value, "content": blocks})
    return handler(value)


def _block(role: str, position: int, block: object) -> Body:
    kinds = _BLOCKS[role]
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        allowed = ", ".join(kinds)
        raise ValueError(
            f"may hold {allowed} with the role {role}; block {position} is {ascii(kind)[:40]}"
        )
    try:
        return kinds[kind].model_validate(block, strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        path = ".".join(map(str, problem["loc"]))
        raise ValueError(f"is wrong in block {position}, {path}: {problem['msg']}") from None


class Turn(Body):
    """A message."""

    role: Literal["system", "user", "assistant"]
    content: str | list[Block]


class CustomTool(Body):
    """A tool that the client runs."""

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    input_schema: dict[str, object]
    strict: bool | None = None


def _tools(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    for position, tool in enumerate(value if isinstance(value, list) else []):
        kind = tool.get("type") if isinstance(tool, dict) else tool
        if kind not in (None, "custom"):
            raise ValueError(
                f"may hold tools that the client runs; {position} is {ascii(kind)[:40]}"
            )
    return handler(value)


class ToolChoice(Body):
    """Whether tools may or have to be used."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Body):
    """Whether there is thought, and of how many tokens at most."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Annotated[int, Field(ge=1024)] | None = None


class OutputFormat(Body):
    """What the answer is held to."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, object], Field(alias="schema")]


class OutputConfig(Body):
    """The form of the answer, and how much is thought."""

    format: OutputFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh"] | None = None


class CountBody(EngineOptions):
    """POST /v1/messages/count_tokens."""

    messages: Annotated[list[Annotated[Turn, WrapValidator(_message)]], Field(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[CustomTool] | None, WrapValidator(_tools)] = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, object] | None = None


class MessagesBody(CountBody):
    """POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: list[Annotated[str, Field(min_length=1)]] | None = None


MESSAGES_FIELDS = FieldTable(
    MappingProxyType(
        {
            "container": NotBuilt("there are no containers"),
            "context_management": NotBuilt("contexts are not edited"),
            "diagnostics": NotBuilt("there are none"),
            "inference_geo": NotBuilt("it runs where the server runs"),
            "mcp_servers": NotBuilt("no other server is called", ([],)),
            "service_tier": NotBuilt("there is one tier", ("auto", "standard_only")),
            "speed": NotBuilt("there is one speed", ("standard",)),
            "user_profile_id": NotBuilt("there are no profiles"),
            "workspace_id": NotBuilt("there are no workspaces"),
        }
    ),
    frozenset({"metadata", "cache_control"}),
    NAMES_OF_CHAT,
)
NESTED_FIELDS = FieldTable(
    MappingProxyType(
        {
            "allowed_callers": NotBuilt("the model calls, nobody else", (["direct"],)),
            "citations": NotBuilt("sources are not cited", ([], {"enabled": False})),
            "defer_loading": NotBuilt("tools are shown at once", (False,)),
            "display": NotBuilt("thought is told whole, not summarised"),
            "input_examples": NotBuilt("put them into the description", ([],)),
        }
    ),
    frozenset({"cache_control", "signature", "eager_input_streaming", "caller"}),
)
"""Of blocks, tools and `thinking`. Prefixes are kept for all, and arguments always stream."""
