"""Which formats a model's messages have: by configuration, or as its chat template writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trinity_serve.api.chat_template import ChatTemplate
from trinity_serve.api.message.calls import CallParser
from trinity_serve.api.message.json_calls import JsonCallParser
from trinity_serve.api.message.reasoning import THINK, ReasoningParser
from trinity_serve.api.message.xml_calls import FUNCTION, XmlCallParser

ToolFormat = Literal["hermes", "xml"]
ToolParserName = Literal["auto", "hermes", "xml"]
ReasoningParserName = Literal["auto", "think", "none"]


@dataclass(frozen=True, slots=True)
class MessageFormats:
    """How tools are called, and whether thought comes in a `<think>` block."""

    tools: ToolFormat = "hermes"
    reasoning: bool = True

    @classmethod
    def settle(
        cls,
        tool_parser: ToolParserName,
        reasoning_parser: ReasoningParserName,
        template: ChatTemplate | None,
    ) -> MessageFormats:
        """Resolve `auto`: a template shows the model the form of its calls and of its thought."""
        source = "" if template is None else template.source
        tools = tool_parser
        if tools == "auto":
            tools = "xml" if FUNCTION in source else "hermes"
        if reasoning_parser == "auto":
            return cls(tools, THINK in source)
        return cls(tools, reasoning_parser == "think")

    def call_parser(self, schemas: Mapping[str, object], *, parallel: bool) -> CallParser:
        """Return the parser of calls; `schemas` are the functions' parameters by name."""
        if self.tools == "hermes":
            return JsonCallParser(parallel=parallel)
        texts = {name: _text_parameters(schema) for name, schema in schemas.items()}
        return XmlCallParser(texts, parallel=parallel)

    def reasoning_parser(self, *, opened: bool) -> ReasoningParser | None:
        """Return the parser of thought, if the model has it."""
        return ReasoningParser(opened=opened) if self.reasoning else None


def _text_parameters(schema: object) -> frozenset[str]:
    """Return the parameters that are strings and nothing else."""
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping):
        return frozenset()
    return frozenset(str(name) for name, value in properties.items() if is_text(value))


def is_text(schema: object) -> bool:
    """Return whether only strings are valid under a parameter's schema, as far as it shows."""
    if not isinstance(schema, Mapping):
        return False
    allowed = schema.get("enum")
    if isinstance(allowed, Sequence) and not isinstance(allowed, str):
        return bool(allowed) and all(isinstance(value, str) for value in allowed)
    return schema.get("type") in ("string", ["string"])
