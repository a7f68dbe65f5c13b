"""What a request holds its output to: `response_format`, `structured_outputs`, calls of tools.

Sizes are checked before anything is compiled, compilation has fuel and a deadline and runs in a
text thread; what does not fit is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import orjson
from llguidance import LLMatcher
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

from cluster.deadline import Deadline
from cluster.errors import DeadlineExceededError, InvalidRequestError
from trinity_serve.api.grammar_text import (
    Calls,
    Entry,
    Schema,
    choice_entry,
    grammar_text,
    schema_entry,
)
from trinity_serve.api.limits import ApiLimits
from trinity_serve.api.message.formats import is_text
from trinity_serve.api.schema import Function, GenerationBody, ResponseFormat, StructuredOutputs
from trinity_serve.api.service import ModelService
from trinity_serve.api.tools import ToolUse

_UNWRITABLE = re.compile(r"[<>\n\"']|^\s|\s$|^$")
_ANY_OBJECT: Schema = {"type": "object"}
_MAX_GBNF_CHARS = 1 << 14
_UNQUOTABLE = ("pattern", "format", "minLength", "maxLength", "const")
"""What a schema may ask of a string that the XML form, which has no quotes, cannot be held to."""


async def constraint(
    body: GenerationBody,
    service: ModelService,
    limits: ApiLimits,
    deadline: Deadline,
    *,
    tools: ToolUse | None = None,
    after_thought: bool = False,
) -> str:
    """Return the grammar of the output; empty when it is free. Raises `InvalidRequestError`."""
    param = _param(body)
    calls = None if tools is None else _calls(tools, service, has_answer=bool(param))
    if not param and calls is None:
        return ""
    if calls is not None and calls.required and param:
        message = f"{param} excludes a tool_choice that asks for a call."
        raise InvalidRequestError(param, message)
    param = param or "tools"
    _check_end(body, service, param)
    budget = Deadline.after(min(limits.grammar_timeout_s, deadline.remaining_s()))

    def compiled() -> str:
        return _checked(service, _answer(body, limits), calls, after_thought, param, limits)

    try:
        return await service.in_thread(compiled, "Compiling the grammar", budget)
    except DeadlineExceededError as error:
        raise InvalidRequestError(
            param, f"The grammar of {param} is too complex: {error}"
        ) from error


def _param(body: GenerationBody) -> str:
    """Return the field that holds the content to something, or nothing."""
    by_format = body.response_format is not None and body.response_format.type != "text"
    if by_format and body.structured_outputs is not None:
        message = "response_format and structured_outputs exclude each other."
        raise InvalidRequestError("structured_outputs", message)
    if by_format:
        return "response_format"
    return "" if body.structured_outputs is None else "structured_outputs"


def _check_end(body: GenerationBody, service: ModelService, param: str) -> None:
    if body.min_tokens or body.ignore_eos:
        name = "min_tokens" if body.min_tokens else "ignore_eos"
        message = f"{name} is not allowed with {param}: the grammar says where the output may end."
        raise InvalidRequestError(name, message)
    if not service.defaults.eos_token_ids:
        message = f"{param} needs a model with an end token; {service.name} has none."
        raise InvalidRequestError(param, message)


def _checked(
    service: ModelService,
    answer: Entry | None,
    calls: Calls | None,
    after_thought: bool,
    param: str,
    limits: ApiLimits,
) -> str:
    grammars = service.grammars
    assert grammars is not None, "a service has a tokenizer"
    special = grammars.special_token
    text = grammar_text(answer, calls, after_thought=after_thought, special=special)
    if len(text) > limits.max_grammar_chars:
        message = (
            f"{param} makes a grammar of {len(text)} characters; "
            f"allowed: {limits.max_grammar_chars}."
        )
        raise InvalidRequestError(param, message)
    try:
        grammars.check(text)
    except InvalidRequestError as error:
        raise InvalidRequestError(param, error.message) from error
    return text


def _answer(body: GenerationBody, limits: ApiLimits) -> Entry | None:
    if body.structured_outputs is not None:
        return _of_outputs(body.structured_outputs, limits)
    return None if body.response_format is None else _of_format(body.response_format, limits)


def _of_format(form: ResponseFormat, limits: ApiLimits) -> Entry | None:
    if form.type == "text":
        return None
    if form.type == "json_object":
        return schema_entry(_ANY_OBJECT)
    if form.json_schema is None:
        message = "response_format.json_schema is required for type json_schema."
        raise InvalidRequestError("response_format", message)
    schema = form.json_schema.schema_
    return schema_entry(
        _bounded(_ANY_OBJECT if schema is None else schema, limits, "response_format")
    )


def _of_outputs(outputs: StructuredOutputs, limits: ApiLimits) -> Entry:
    given = outputs.given()
    if len(given) != 1:
        message = (
            f"structured_outputs has {', '.join(given) or 'nothing'}; allowed is exactly one of "
            f"json, json_object, regex, choice and grammar."
        )
        raise InvalidRequestError("structured_outputs", message)
    if outputs.json_ is not None:
        return schema_entry(_bounded(_parsed(outputs.json_), limits, "structured_outputs"))
    if outputs.regex is not None:
        return _entry_of(LLMatcher.grammar_from_regex(outputs.regex))
    if outputs.choice is not None:
        return choice_entry(outputs.choice)
    if outputs.grammar is not None:
        return {"lark_grammar": _lark(outputs.grammar)}
    return schema_entry(_ANY_OBJECT)


def _lark(grammar: str) -> str:
    """Return a grammar in Lark form; GBNF is known by its arrows."""
    if "::=" not in grammar:
        return grammar
    if len(grammar) > _MAX_GBNF_CHARS:
        message = f"The GBNF grammar has {len(grammar)} characters; allowed: {_MAX_GBNF_CHARS}."
        raise InvalidRequestError("structured_outputs", message)
    try:
        return str(any_to_lark(grammar))
    except (GbnfToLarkError, ValueError, LookupError, AssertionError, RecursionError) as error:
        message = f"The GBNF grammar cannot be read: {error}."
        raise InvalidRequestError("structured_outputs", message) from error


def _parsed(schema: str | Mapping[str, object]) -> Schema:
    if not isinstance(schema, str):
        return schema
    try:
        parsed = orjson.loads(schema)
    except ValueError as error:
        message = f"structured_outputs.json is no JSON: {error}."
        raise InvalidRequestError("structured_outputs", message) from error
    if not isinstance(parsed, dict):
        message = "structured_outputs.json must be a schema, which is an object."
        raise InvalidRequestError("structured_outputs", message)
    return parsed


def _entry_of(grammar: str) -> Entry:
    first = json.loads(grammar)["grammars"][0]
    return {"lark_grammar": first["lark_grammar"]}


def _bounded(schema: Schema, limits: ApiLimits, param: str) -> Schema:
    depth = _depth(schema)
    if depth > limits.max_schema_depth:
        message = f"The schema is nested {depth} deep; allowed: {limits.max_schema_depth}."
        raise InvalidRequestError(param, message)
    return schema


def _depth(schema: object) -> int:
    """Return how deep lists and objects nest, level by level: no recursion on what clients send."""
    depth, level = 0, [schema]
    while level:
        nested: list[object] = []
        for value in level:
            if isinstance(value, Mapping):
                nested += value.values()
            elif isinstance(value, list):
                nested += value
        depth, level = depth + 1, nested
    return depth - 1


def _calls(tools: ToolUse, service: ModelService, *, has_answer: bool) -> Calls | None:
    """Calls are held to schemas when one is required, strict, or the only other answer is held."""
    strict = any(function.strict for function in tools.callable)
    if not tools.parses or not (tools.choice == "required" or strict or has_answer):
        return None
    form = service.formats.tools
    schemas = {
        function.name: _schema(function, tools, form == "xml") for function in tools.callable
    }
    return Calls(form, schemas, tools.choice == "required", tools.parallel)


def _schema(function: Function, tools: ToolUse, is_xml: bool) -> Schema:
    parameters = function.parameters or _ANY_OBJECT
    if is_xml:
        _check_quotable(function)
        return parameters
    return parameters if function.strict or tools.choice == "required" else _ANY_OBJECT


def _check_quotable(function: Function) -> None:
    properties = (function.parameters or {}).get("properties")
    for name, schema in properties.items() if isinstance(properties, Mapping) else ():
        if _UNWRITABLE.search(name):
            message = f"The parameter {name!r} of the function {function.name!r} has no XML form."
            raise InvalidRequestError("tools", message)
        held = [key for key in _UNQUOTABLE if is_text(schema) and key in schema]
        if held and function.strict:
            message = (
                f"The parameter {name!r} of the strict function {function.name!r} has {held[0]}, "
                f"which this model's form of calls cannot be held to; use enum, or strict = false."
            )
            raise InvalidRequestError("tools", message)
