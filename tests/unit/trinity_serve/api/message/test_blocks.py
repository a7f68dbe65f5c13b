"""Blocks are in the order of the text, and do not depend on how it was cut."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trinity_serve.api.message.blocks import BlockEnd, Blocks, BlockStart, BlockText
from trinity_serve.api.message.json_calls import JsonCallParser
from trinity_serve.api.message.parser import MessageParser
from trinity_serve.api.message.reasoning import ReasoningParser

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
SAID = f"<think>\nhm\n</think>\n\nSo:\n{CALL}\n{CALL}\nDone."
FRAGMENTS = [
    "<think>",
    "</think>",
    CALL,
    "<tool_call>",
    '{"name": "f"',
    "}",
    "\n",
    " ",
    "text",
    "é",
]
Told = list[tuple[str, str, str]]


def new_blocks() -> Blocks:
    return Blocks(MessageParser(ReasoningParser(opened=False), JsonCallParser(parallel=True)))


def told(parts: Sequence[str]) -> Told:
    """Return kind, name and text of each block, put together from events, which are checked."""
    blocks, texts, open_index = new_blocks(), list[str](), -1
    for position, part in enumerate(parts):
        for event in blocks.push(part, num_tokens=1, ends=position == len(parts) - 1):
            index = event.block.index
            if isinstance(event, BlockStart):
                assert open_index == -1
                assert index == len(texts)
                open_index = index
                texts.append("")
            elif isinstance(event, BlockText):
                assert index == open_index
                texts[index] += event.text
            else:
                assert isinstance(event, BlockEnd)
                assert index == open_index
                open_index = -1
    assert open_index == -1
    assert [block.text for block in blocks.all] == texts
    return [(block.kind, block.name, block.text) for block in blocks.all]


def test_thought_text_and_calls_are_blocks_in_their_order() -> None:
    call = ("call", "f", '{"a": 1}')
    assert told([SAID]) == [
        ("thought", "", "hm"),
        ("text", "", "So:"),
        call,
        call,
        ("text", "", "Done."),
    ]


def test_character_by_character_gives_the_same() -> None:
    assert told(list(SAID)) == told([SAID])


@given(
    text=st.lists(st.sampled_from(FRAGMENTS), max_size=10).map("".join),
    cuts=st.lists(st.integers(0, 300), max_size=8),
)
def test_any_cuts_give_the_same(text: str, cuts: list[int]) -> None:
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    assert told([text[a:b] for a, b in itertools.pairwise(bounds)]) == told([text])


def test_text_that_says_nothing_makes_no_block() -> None:
    assert told([""]) == []


@pytest.mark.parametrize(
    ("parts", "num_thought"),
    [
        (["<think>", "hm", "</think>", "So"], 3),
        (["<think>", "hm"], 2),
        (["So", " it", " is"], 0),
        ([""], 0),
    ],
)
def test_tokens_of_thought_are_counted_up_to_the_answer(parts: list[str], num_thought: int) -> None:
    blocks = new_blocks()
    for position, part in enumerate(parts):
        blocks.push(part, num_tokens=1, ends=position == len(parts) - 1)
    assert blocks.num_thought_tokens == num_thought
