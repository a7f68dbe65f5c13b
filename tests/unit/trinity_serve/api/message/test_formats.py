"""Formats as configured, or as the chat template shows them."""

from __future__ import annotations

import pytest

from trinity_serve.api.chat_template import ChatTemplate
from trinity_serve.api.message.formats import MessageFormats, ReasoningParserName, ToolParserName
from trinity_serve.api.message.json_calls import JsonCallParser
from trinity_serve.api.message.pieces import CallArguments
from trinity_serve.api.message.xml_calls import XmlCallParser


@pytest.mark.parametrize(
    ("template", "tool_parser", "reasoning_parser", "expected"),
    [
        ("", "auto", "auto", ("hermes", False)),
        ("<think>", "auto", "auto", ("hermes", True)),
        ("<think> <function=NAME>", "auto", "auto", ("xml", True)),
        ("<think> <function=NAME>", "hermes", "none", ("hermes", False)),
        ("", "xml", "think", ("xml", True)),
    ],
)
def test_formats_are_configured_or_found_in_the_template(
    template: str,
    tool_parser: ToolParserName,
    reasoning_parser: ReasoningParserName,
    expected: tuple[str, bool],
) -> None:
    formats = MessageFormats.settle(
        tool_parser, reasoning_parser, ChatTemplate(template, {}, "test")
    )
    assert (formats.tools, formats.reasoning) == expected


def test_without_a_template_there_is_no_thought() -> None:
    assert MessageFormats.settle("auto", "auto", None) == MessageFormats("hermes", False)


def test_each_format_has_its_parser() -> None:
    assert isinstance(MessageFormats("hermes").call_parser({}, parallel=True), JsonCallParser)
    assert isinstance(MessageFormats("xml").call_parser({}, parallel=True), XmlCallParser)
    assert MessageFormats(reasoning=False).reasoning_parser(opened=True) is None


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, '"3"'),
        ({"type": ["string"]}, '"3"'),
        ({"enum": ["3", "4"]}, '"3"'),
        ({"type": ["string", "null"]}, "3"),
        ({"type": "integer"}, "3"),
        ({"enum": [3]}, "3"),
        ({}, "3"),
        ("nonsense", "3"),
    ],
)
def test_a_schema_decides_whether_a_value_is_text(schema: object, expected: str) -> None:
    schemas = {"f": {"properties": {"a": schema}}}
    parser = MessageFormats("xml").call_parser(schemas, parallel=True)
    text = "<tool_call><function=f><parameter=a>3</parameter></function></tool_call>"
    pieces = [piece for piece in parser.push(text) if isinstance(piece, CallArguments)]
    assert "".join(piece.text for piece in pieces) == f'{{"a": {expected}}}'
