"""Chats that ask for several things at once, and what comes back, whole or streamed, compared."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

Fields = dict[str, object]
SCHEMA: Fields = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "level": {"enum": [1, 2, 3]}},
    "required": ["mood", "level"],
    "additionalProperties": False,
}
FORMAT: Fields = {"type": "json_schema", "json_schema": {"name": "mood", "schema": SCHEMA}}
BUDGET = 6
MAX_TOKENS = 48


def _tool(name: str, *, strict: bool) -> Fields:
    function = {"name": name, "parameters": SCHEMA, "strict": strict}
    return {"type": "function", "function": function}


_TOOLS = [_tool("tell", strict=False), _tool("ask", strict=False)]
_STRICT = [_tool("tell", strict=True), _tool("ask", strict=True)]
_NAMED: Fields = {"type": "function", "function": {"name": "tell"}}
_THINKS: Fields = {"chat_template_kwargs": {"enable_thinking": True}}

AXES: Mapping[str, Mapping[str, Fields]] = {
    "held": {
        "free": {},
        "schema": {"response_format": FORMAT},
        "object": {"response_format": {"type": "json_object"}},
        "regex": {"structured_outputs": {"regex": "[a-d]{2,9}( [0-9]{2,5}){2}"}},
        "choice": {"structured_outputs": {"choice": ["yes, indeed", "no, never"]}},
        "grammar": {"structured_outputs": {"grammar": 'start: ("ab" | "cd")+ "."'}},
        "auto": {"tools": _TOOLS},
        "strict": {"tools": _STRICT},
        "required": {"tools": _TOOLS, "tool_choice": "required"},
        "named": {"tools": _STRICT, "tool_choice": _NAMED},
        "schema or call": {"tools": _TOOLS, "response_format": FORMAT},
    },
    "thought": {
        "none": {"chat_template_kwargs": {"enable_thinking": False}},
        "free": _THINKS,
        "cut short": _THINKS | {"thinking_token_budget": BUDGET},
    },
    "choices": {"one": {}, "three": {"n": 3}},
    "stop": {"none": {}, "string": {"stop": ["e", "cd."]}},
    "logprobs": {"none": {}, "two": {"logprobs": True, "top_logprobs": 2}},
}


@dataclass(frozen=True)
class Case:
    """One value of every axis."""

    values: tuple[str, ...]

    def __str__(self) -> str:
        return "-".join(self.values).replace(" ", "_")

    def __getitem__(self, axis: str) -> str:
        return self.values[list(AXES).index(axis)]

    def body(self) -> Fields:
        """Return the chat; the same each time."""
        body: Fields = {
            "messages": [{"role": "user", "content": "Say something."}],
            "max_tokens": MAX_TOKENS,
            "temperature": 1.0,
            "top_p": 1.0,
            "seed": 11,
            "return_token_ids": True,
        }
        for axis, value in zip(AXES.values(), self.values, strict=True):
            body |= axis[value]
        return body


def every_case() -> list[Case]:
    """Return all of them."""
    return [Case(values) for values in itertools.product(*AXES.values())]


def cases_of_all_pairs() -> list[Case]:
    """Return few cases in which every two values of different axes meet."""
    cases, chosen = every_case(), []
    missing = set().union(*map(_pairs, cases))
    while missing:
        best = max(cases, key=lambda case: len(_pairs(case) & missing))
        missing -= _pairs(best)
        chosen.append(best)
    return chosen


def _pairs(case: Case) -> set[tuple[tuple[int, str], tuple[int, str]]]:
    return set(itertools.combinations(enumerate(case.values), 2))


@dataclass
class Said:
    """What one choice said; ids that are made anew for each reply are left out."""

    content: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)
    """Name and arguments of each."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[object] = field(default_factory=list)
    finish: str | None = None
    stop: str | int | None = None

    def take(self, message: Mapping[str, Any], choice: Mapping[str, Any]) -> None:
        """Add a message, or a delta of one."""
        self.content += message.get("content") or ""
        self.reasoning += message.get("reasoning") or ""
        for place, call in enumerate(message.get("tool_calls") or []):
            function = call["function"]
            if call.get("index", place) == len(self.calls):
                self.calls.append([function["name"], ""])
            self.calls[-1][1] += function.get("arguments") or ""
        self.token_ids += choice.get("token_ids") or []
        self.logprobs += (choice.get("logprobs") or {}).get("content") or []
        self.finish = choice.get("finish_reason") or self.finish
        self.stop = choice.get("stop_reason") or self.stop


def said_of_whole(reply: Mapping[str, Any]) -> list[Said]:
    """Return what each choice of an answer said."""
    said = [Said() for _ in reply["choices"]]
    for choice in reply["choices"]:
        said[choice["index"]].take(choice["message"], choice)
    return said


def said_of_stream(text: str, num_choices: int) -> list[Said]:
    """Return what each choice of a streamed answer said. Fails on an error event."""
    said = [Said() for _ in range(num_choices)]
    for event in _events(text.split("\n\n")):
        for choice in event["choices"]:
            said[choice["index"]].take(choice["delta"], choice)
    return said


def _events(parts: Sequence[str]) -> Iterable[Mapping[str, Any]]:
    *events, done, rest = parts
    assert (done, rest) == ("data: [DONE]", "")
    for event in events:
        parsed = orjson.loads(event.removeprefix("data: "))
        assert "error" not in parsed, parsed
        yield parsed
