"""Grammars as text in llguidance's Lark dialect: calls in either format, thought before all of it.

The forms are those of the parsers in `message`: what a grammar lets through, they take apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from trinity_serve.api.message.calls import CALL, END_CALL
from trinity_serve.api.message.formats import ToolFormat, is_text
from trinity_serve.api.message.reasoning import END_THINK
from trinity_serve.api.message.xml_calls import (
    END_FUNCTION,
    END_PARAMETER,
    FUNCTION,
    PARAMETER,
)

Schema = Mapping[str, object]
Entry = dict[str, object]
"""One of the grammars of llguidance's JSON form: a `json_schema` or a `lark_grammar`."""

_GUIDANCE = {"whitespace_pattern": r"[ \n\r\t]{0,32}"}
"""Enough to indent; without a bound a model may go on with blanks until its budget is gone."""


@dataclass(frozen=True, slots=True)
class Calls:
    """Functions by name with the schemas of their arguments, and how they may be called."""

    form: ToolFormat
    schemas: Mapping[str, Schema]
    required: bool
    parallel: bool


def schema_entry(schema: Schema) -> Entry:
    """Return the grammar of JSON that is valid under `schema`."""
    return {"json_schema": _guided(schema)}


def choice_entry(choices: Sequence[str]) -> Entry:
    """Return the grammar of some texts."""
    return {"lark_grammar": "start: " + " | ".join(map(_quoted, choices))}


def grammar_text(
    answer: Entry | None,
    calls: Calls | None,
    *,
    after_thought: bool,
    special: Callable[[str], bool],
) -> str:
    """Return the grammar of a message.

    Args:
        answer: what the content is held to; None: free.
        calls: what calls are held to; None: none are made.
        after_thought: whether the prompt has opened a `<think>` block, to be closed first.
        special: whether a tag is a special token of the tokenizer.
    """
    if calls is None and not after_thought and answer is not None:
        return json.dumps({"grammars": [answer]})
    writer = _Writer(special)
    body = _body(writer, answer, calls)
    if after_thought:
        writer.rule("thought", "text_to_thought_end BREAKS?")
        writer.until("text_to_thought_end", END_THINK)
        writer.rule("BREAKS", r"/\n{1,2}/")
        body = f"thought ({body})"
    writer.rule("start", body)
    grammars: list[Entry] = [{"name": "message", "lark_grammar": writer.text()}]
    if answer is not None:
        grammars.append({"name": "answer", **answer})
    return json.dumps({"grammars": grammars})


def _body(writer: _Writer, answer: Entry | None, calls: Calls | None) -> str:
    if calls is None:
        return "@answer" if answer is not None else "TEXT"
    _write_call(writer, calls)
    if calls.required or answer is not None:
        several = f'{_OPENED_CALL} ("\\n" {_OPENED_CALL})*' if calls.parallel else _OPENED_CALL
        return several if answer is None else f"@answer | {several}"
    writer.until("text_to_call", CALL)
    # Blocks as they come in free text; the text after the last one is free again.
    return "(text_to_call call)* TEXT" if calls.parallel else "(text_to_call call)? TEXT"


_OPENED_CALL = "call_tag call"


def _write_call(writer: _Writer, calls: Calls) -> None:
    """Write `call_tag`, and `call`, which is all of a block after its opening tag."""
    names = []
    for number, (name, schema) in enumerate(calls.schemas.items()):
        names.append(f"function_{number}")
        if calls.form == "hermes":
            head = '{"name": ' + json.dumps(name) + ', "arguments": '
            writer.rule(names[-1], f'{_quoted(head)} {_json(schema)} "}}\\n"')
        else:
            _write_xml_function(writer, names[-1], name, schema)
    writer.rule("call_tag", writer.tag(CALL))
    writer.rule("call", f'"\\n" ({" | ".join(names)}) {writer.tag(END_CALL)}')


def _write_xml_function(writer: _Writer, rule: str, name: str, schema: Schema) -> None:
    properties, required = schema.get("properties"), schema.get("required")
    parts = [_quoted(f"{FUNCTION}{name}>\n")]
    for number, (key, value) in enumerate(
        properties.items() if isinstance(properties, Mapping) else ()
    ):
        parameter = f"{rule}_{number}"
        own = value if isinstance(value, Mapping) else {}
        definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        writer.rule(parameter, f"{_quoted(f'{PARAMETER}{key}>' + chr(10))} {parameter}_value")
        _write_xml_value(writer, f"{parameter}_value", own, definitions)
        always = isinstance(required, list) and key in required
        parts.append(parameter if always else f"{parameter}?")
    writer.rule(rule, " ".join([*parts, _quoted(f"{END_FUNCTION}\n")]))


def _write_xml_value(writer: _Writer, rule: str, schema: Schema, definitions: Schema) -> None:
    end = f"\n{END_PARAMETER}\n"
    allowed = schema.get("enum")
    if not is_text(schema):
        writer.rule(rule, f"{_json({**schema, **definitions}, as_object=False)} {_quoted(end)}")
    elif isinstance(allowed, list):
        writer.rule(rule, f"({' | '.join(map(_quoted, allowed))}) {_quoted(end)}")
    else:
        writer.until(rule, end)


class _Writer:
    """Collects rules."""

    def __init__(self, special: Callable[[str], bool]) -> None:
        self._special = special
        self._rules: dict[str, str] = {"TEXT": r"/(.|\n)*/"}

    def rule(self, name: str, body: str) -> None:
        self._rules[name] = f": {body}"

    def until(self, name: str, end: str) -> None:
        """Free text up to and with the first `end`."""
        if self._special(end):
            self._rules[name] = f": TEXT {end}"
        else:
            self._rules[f"{name}[lazy]"] = f": TEXT {_quoted(end)}"

    def tag(self, text: str) -> str:
        return text if self._special(text) else _quoted(text)

    def text(self) -> str:
        rules = [
            name + (body if body.startswith(":") else f": {body}")
            for name, body in self._rules.items()
        ]
        return "\n".join(["%llguidance {}", *rules, ""])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _json(schema: Schema, *, as_object: bool = True) -> str:
    return "%json " + json.dumps(_guided({"type": "object", **schema} if as_object else schema))


def _guided(schema: Schema) -> Schema:
    return {**schema, "x-guidance": _GUIDANCE}
