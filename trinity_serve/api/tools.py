"""Which functions a chat request lets the model call, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import orjson

from cluster.errors import InvalidRequestError
from trinity_serve.api.limits import ApiLimits
from trinity_serve.api.schema import ChatBody, Function, NamedTool


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The functions that may be called; `choice` says whether one has to be.

    `named` is the one that has to be called, with choice `required`.
    """

    functions: tuple[Function, ...] = ()
    choice: Literal["none", "auto", "required"] = "none"
    named: str | None = None
    parallel: bool = True

    @property
    def parses(self) -> bool:
        """Whether calls are looked for in the message."""
        return self.choice != "none"

    @property
    def callable(self) -> tuple[Function, ...]:
        """The functions that a call may name."""
        return tuple(f for f in self.functions if self.named in (None, f.name))


def tool_use(body: ChatBody, limits: ApiLimits) -> ToolUse:
    """Check `tools` and `tool_choice`. Raises `InvalidRequestError`."""
    choice = body.tool_choice
    functions = tuple(tool.function for tool in body.tools or ())
    if not functions:
        if choice not in (None, "none", "auto"):
            message = "tool_choice asks for a call, but tools is empty."
            raise InvalidRequestError("tool_choice", message)
        return ToolUse()
    _check_functions(body, functions, limits)
    parallel = body.parallel_tool_calls is not False
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if name not in {function.name for function in functions}:
            allowed = ", ".join(function.name for function in functions)
            message = f"tool_choice names {name!r}, which is not in tools; allowed: {allowed}."
            raise InvalidRequestError("tool_choice", message)
        return ToolUse(functions, "required", name, parallel=False)
    return ToolUse(functions, choice or "auto", None, parallel)


def _check_functions(body: ChatBody, functions: tuple[Function, ...], limits: ApiLimits) -> None:
    if len(functions) > limits.max_tools:
        message = f"tools holds {len(functions)} functions; allowed: {limits.max_tools}."
        raise InvalidRequestError("tools", message)
    num_bytes = sum(len(orjson.dumps(function.model_dump())) for function in functions)
    if num_bytes > limits.max_tools_bytes:
        message = f"tools has {num_bytes} bytes of definitions; allowed: {limits.max_tools_bytes}."
        raise InvalidRequestError("tools", message)
    names = [function.name for function in functions]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        message = f"tools holds the name {twice[0]!r} more than once; names must differ."
        raise InvalidRequestError("tools", message)
