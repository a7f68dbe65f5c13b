"""Reasoning and tool calls: what comes out, and that it never depends on how the text was cut."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trinity_serve.api.message.json_calls import JsonCallParser
from trinity_serve.api.message.parser import MessageParser
from trinity_serve.api.message.pieces import (
    CallArguments,
    CallStart,
    Content,
    Parser,
    Piece,
    Reasoning,
)
from trinity_serve.api.message.reasoning import ReasoningParser
from trinity_serve.api.message.xml_calls import XmlCallParser

Result = tuple[str, str, list[tuple[str, str]]]
"""Reasoning, content, and (name, arguments) of each call."""

NewParser = Callable[[], Parser]
TEXT_PARAMETERS = {"write": frozenset({"text"})}


def joined(pieces: list[Piece]) -> Result:
    reasoning, content = "", ""
    calls: list[tuple[str, str]] = []
    for piece in pieces:
        match piece:
            case Reasoning(text):
                reasoning += text
            case Content(text):
                content += text
            case CallStart(index, name):
                assert index == len(calls)
                calls.append((name, ""))
            case CallArguments(index, text):
                assert index == len(calls) - 1
                calls[index] = (calls[index][0], calls[index][1] + text)
    return reasoning, content, calls


def parse(parser: Parser, parts: list[str]) -> Result:
    pieces = [piece for part in parts for piece in parser.push(part)]
    return joined(pieces + parser.flush())


def json_calls(parallel: bool = True) -> Parser:
    return JsonCallParser(parallel=parallel)


def xml_calls(parallel: bool = True) -> Parser:
    return XmlCallParser(TEXT_PARAMETERS, parallel=parallel)


def thinking(calls: NewParser = json_calls, *, opened: bool = False) -> Parser:
    return MessageParser(ReasoningParser(opened=opened), calls())


WEATHER = (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": [1, 2]}}\n</tool_call>'
)
JSON_CASES: list[tuple[str, Result]] = [
    ("Hello\n", ("", "Hello\n", [])),
    (WEATHER, ("", "", [("weather", '{"city": "Rome", "days": [1, 2]}')])),
    (
        f"Let me see.\n\n{WEATHER}\n{WEATHER}\n",
        ("", "Let me see.", [("weather", '{"city": "Rome", "days": [1, 2]}')] * 2),
    ),
    ('<tool_call>{"name": "f"}</tool_call>', ("", "", [("f", "{}")])),
    ('<tool_call>{"name":"f","arguments":null}</tool_call>', ("", "", [("f", "{}")])),
    ('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', ("", "", [("f", '{"a": 1}')])),
    (
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>x',
        ("", "x", [("f", '{"a": 1}')]),
    ),
    (
        '<tool_call>{"name": "f", "arguments": {"a": "</tool_call> }\\""}}</tool_call>',
        ("", "", [("f", '{"a": "</tool_call> }\\""}')]),
    ),
    # A bracket too few, which models write: the call is whole all the same.
    ('<tool_call>{"name": "f", "arguments": {"a": 1}\n</tool_call>', ("", "", [("f", '{"a": 1}')])),
    # Arguments that are no JSON are told as they were written.
    ('<tool_call>{"name": "f", "arguments": {a: }}</tool_call>', ("", "", [("f", "{a: }")])),
    ('<tool_call>{"name": "f", "arguments": {"a": </tool_call>', ("", "", [("f", '{"a": ')])),
    # What ends early: told as far as it went, or content while no name is known.
    ('<tool_call>\n{"name": "f", "arguments": {"a": "b', ("", "", [("f", '{"a": "b')])),
    ('a <tool_call>\n{"name": "f"', ("", 'a <tool_call>\n{"name": "f"', [])),
    ("a <tool_ca", ("", "a <tool_ca", [])),
    # No calls.
    ("<tool_call>nothing</tool_call> b", ("", "<tool_call>nothing</tool_call> b", [])),
    ('<tool_call>{"name": 7}</tool_call>', ("", '<tool_call>{"name": 7}</tool_call>', [])),
    ('<tool_call>{"nom": "f"}', ("", '<tool_call>{"nom": "f"}', [])),
    (
        '<tool_call>{"name": "f", "arguments": {}} and more</tool_call>',
        ("", "and more", [("f", "{}")]),
    ),
]

XML_CALL = (
    '<tool_call>\n<function=write>\n<parameter=text>\n a "b"\n\nü\n</parameter>\n'
    "<parameter=count>\n3\n</parameter>\n<parameter=where>\nhere\n</parameter>\n"
    "</function>\n</tool_call>"
)
XML_ARGUMENTS = '{"text": " a \\"b\\"\\n\\nü", "count": 3, "where": "here"}'
XML_CASES: list[tuple[str, Result]] = [
    (XML_CALL, ("", "", [("write", XML_ARGUMENTS)])),
    (f"Now:\n{XML_CALL}\n{XML_CALL}", ("", "Now:", [("write", XML_ARGUMENTS)] * 2)),
    ("<tool_call>\n<function=f>\n</function>\n</tool_call>", ("", "", [("f", "{}")])),
    (
        "<tool_call><function=write><parameter=text>3</parameter></function></tool_call>",
        ("", "", [("write", '{"text": "3"}')]),
    ),
    (
        "<tool_call><function=f><parameter=a>{'x': 1}</parameter></function></tool_call>",
        ("", "", [("f", '{"a": "{\'x\': 1}"}')]),
    ),
    (
        "<tool_call><function=f><parameter=a>\n[1, {}]\n</parameter></function></tool_call>",
        ("", "", [("f", '{"a": [1, {}]}')]),
    ),
    (
        "<tool_call><function=write><parameter=text>\nabc\n",
        ("", "", [("write", '{"text": "abc')]),
    ),
    ("<tool_call><function=f><parameter=a>\n12", ("", "", [("f", '{"a": 12')])),
    ("<tool_call><function=f><parameter=", ("", "", [("f", "{")])),
    ("<tool_call>\n<func", ("", "<tool_call>\n<func", [])),
    ("<tool_call><function=>x", ("", "<tool_call><function=>x", [])),
    (
        "<tool_call><function=f></function> junk </tool_call>after",
        ("", "junk after", [("f", "{}")]),
    ),
]

THINKING_CASES: list[tuple[str, Result]] = [
    ("<think>\nhm\n</think>\n\nYes.", ("hm", "Yes.", [])),
    (" \n<think>hm\n\n</think>Yes\n", ("hm\n", "Yes\n", [])),
    (" \n<thin air>", ("", " \n<thin air>", [])),
    ("\n\nplain", ("", "\n\nplain", [])),
    ("<think>never ends\n", ("never ends\n", "", [])),
    ("<think>a</thin", ("a</thin", "", [])),
    (f"<think>\n{WEATHER}\n</think>\nNo.", (WEATHER, "No.", [])),
    (
        f"<think>so</think>\n\n{WEATHER}",
        ("so", "", [("weather", '{"city": "Rome", "days": [1, 2]}')]),
    ),
    ("<think>a</think><think>b</think>", ("a", "<think>b</think>", [])),
]

CASES: list[tuple[NewParser, str, Result]] = [
    *((json_calls, text, result) for text, result in JSON_CASES),
    *((xml_calls, text, result) for text, result in XML_CASES),
    *((thinking, text, result) for text, result in THINKING_CASES),
]


@pytest.mark.parametrize(("new_parser", "text", "expected"), CASES)
def test_a_text_is_taken_apart_whole_and_character_by_character(
    new_parser: NewParser, text: str, expected: Result
) -> None:
    assert parse(new_parser(), [text]) == expected
    assert parse(new_parser(), list(text)) == expected


@pytest.mark.parametrize(("new_parser", "text", "expected"), CASES)
def test_any_two_parts_give_the_same(new_parser: NewParser, text: str, expected: Result) -> None:
    for cut in range(len(text) + 1):
        assert parse(new_parser(), [text[:cut], text[cut:]]) == expected


FRAGMENTS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<function=f>",
    "<function=write>",
    "</function>",
    "<parameter=text>",
    "<parameter=a>",
    "</parameter>",
    '{"name": "f", "arguments": {',
    '"name": "g"',
    '"a": ["x", 1.5e3, null]',
    "}",
    "}}",
    '"',
    "\\",
    ",",
    "<",
    "\n",
    " ",
    "é𝄞",
    "text",
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=14).map("".join)


@given(
    text=TEXTS,
    cuts=st.lists(st.integers(0, 200), max_size=12),
    opened=st.booleans(),
    xml=st.booleans(),
    parallel=st.booleans(),
)
def test_random_parts_of_random_texts_give_what_the_whole_gives(
    text: str, cuts: list[int], opened: bool, xml: bool, parallel: bool
) -> None:
    def new_parser() -> Parser:
        return thinking(lambda: (xml_calls if xml else json_calls)(parallel), opened=opened)

    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [text[a:b] for a, b in itertools.pairwise(bounds)]
    assert parse(new_parser(), parts) == parse(new_parser(), [text])


@given(text=st.text(alphabet='ab<>/\n_ toolcal{}"', max_size=60))
def test_text_without_a_call_comes_through_unchanged(text: str) -> None:
    for parser in (json_calls(), xml_calls()):
        reasoning, content, calls = parse(parser, list(text))
        if not calls:
            assert (reasoning, content) == ("", text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@given(arguments=st.dictionaries(st.text(max_size=5), VALUES, max_size=4), name=st.text(min_size=1))
def test_every_json_object_survives_as_arguments(arguments: dict[str, object], name: str) -> None:
    written = json.dumps(arguments, ensure_ascii=False)
    call = f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {written}}}\n</tool_call>'
    assert parse(json_calls(), list(call)) == ("", "", [(name, written)])


def test_a_prompt_that_opens_the_block_begins_with_thought() -> None:
    assert parse(thinking(opened=True), list("so\n</think>\n\nyes")) == ("so", "yes", [])
    assert parse(thinking(opened=True), ["only thought"]) == ("only thought", "", [])


@pytest.mark.parametrize("new_calls", [json_calls, xml_calls])
def test_without_parallel_calls_the_first_is_the_only_one(
    new_calls: Callable[[bool], Parser],
) -> None:
    call = WEATHER if new_calls is json_calls else XML_CALL
    _, content, calls = parse(new_calls(False), [f"a{call}b{call}c"])
    assert (content, len(calls)) == ("abc", 1)


def test_arguments_stream_as_they_come() -> None:
    parser = json_calls()
    pieces = parser.push('<tool_call>\n{"name": "f", "arguments": {"a": "long te')
    assert pieces == [CallStart(0, "f"), CallArguments(0, '{"a": "long te')]
    parser = xml_calls()
    pieces = parser.push("<tool_call>\n<function=write>\n<parameter=text>\nlong te")
    assert pieces[0] == CallStart(0, "write")
    assert joined(pieces)[2] == [("write", '{"text": "long te')]
