"""Requests that hold their output to something: what reaches the engine, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import httpx
import jsonschema  # type: ignore[import-untyped]
import numpy as np
import pytest

from cluster.errors import InvalidRequestError
from tests.fakes.scripted_engine import ScriptedEngine
from tests.unit.trinity_serve.api.conftest import DEFAULTS
from trinity_serve.api.grammar_text import Calls, Schema, grammar_text, schema_entry
from trinity_serve.api.message.formats import MessageFormats, ToolFormat
from trinity_serve.api.message.parser import MessageParser
from trinity_serve.api.message.pieces import CallArguments, CallStart, Content, Piece, Reasoning
from trinity_serve.api.service import ModelService
from trinity_serve.engine.grammar import GrammarCompiler

Fields = dict[str, object]
CHAT: Fields = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
HELLO: Fields = {"prompt": "hello", "max_tokens": 1}
SCHEMA: Schema = {
    "type": "object",
    "properties": {
        "mode": {"type": "string", "enum": ["a", "b c"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "note": {"type": "string"},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2},
    },
    "required": ["mode", "count"],
    "additionalProperties": False,
    "$defs": {"tag": {"enum": ["x", 1]}},
}
OTHER: Schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}


@pytest.fixture(scope="module")
def service(tiny_checkpoint: Path) -> Iterator[ModelService]:
    service = ModelService.from_folder(
        tiny_checkpoint, name="tiny", defaults=DEFAULTS, max_model_len=4000, vocab_size=512
    )
    yield service
    service.close()


@pytest.fixture
def compiler(service: ModelService) -> GrammarCompiler:
    assert service.grammars is not None
    return service.grammars


def walk(
    compiler: GrammarCompiler, grammar: str, service: ModelService, seed: int, start: str
) -> str | None:
    """Go on from `start` at random, as a model that knows nothing would; None: it did not end."""
    rng = np.random.default_rng(seed)
    matcher = compiler.compile(grammar)
    ids = service.tokenizer.encode(start, add_special_tokens=False)
    assert matcher.consume_tokens(ids)
    for _ in range(600):
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little"))
        ends = 3 in allowed and rng.random() < 0.5
        token = 3 if ends else int(rng.choice(allowed))
        if token == 3:
            return service.tokenizer.decode(ids, skip_special_tokens=True)
        assert matcher.consume_token(token)
        ids.append(token)
    return None


def joined(pieces: list[Piece]) -> tuple[str, str, list[tuple[str, str]]]:
    calls: list[tuple[str, str]] = []
    for piece in pieces:
        if isinstance(piece, CallStart):
            calls.append((piece.name, ""))
        elif isinstance(piece, CallArguments):
            calls[piece.index] = (calls[piece.index][0], calls[piece.index][1] + piece.text)
    return (
        "".join(piece.text for piece in pieces if isinstance(piece, Reasoning)),
        "".join(piece.text for piece in pieces if isinstance(piece, Content)),
        calls,
    )


def message(
    text: str, form: ToolFormat, *, thought: bool = False
) -> tuple[str, str, list[tuple[str, str]]]:
    formats = MessageFormats(form)
    parser = MessageParser(
        formats.reasoning_parser(opened=True) if thought else None,
        formats.call_parser({"f": SCHEMA, "g": OTHER}, parallel=True),
    )
    return joined(parser.push(text) + parser.flush())


def calls(form: ToolFormat, *, required: bool, parallel: bool = True) -> Calls:
    return Calls(form, {"f": SCHEMA, "g": OTHER}, required, parallel)


def check_call(name: str, arguments: str) -> None:
    jsonschema.validate(json.loads(arguments), {"f": SCHEMA, "g": OTHER}[name])


@pytest.mark.parametrize("form", ["hermes", "xml"])
@pytest.mark.parametrize("after_thought", [False, True])
def test_required_calls_are_what_the_parser_finds_and_the_schema_allows(
    service: ModelService, compiler: GrammarCompiler, form: ToolFormat, after_thought: bool
) -> None:
    grammar = grammar_text(
        None, calls(form, required=True), after_thought=after_thought, special=lambda tag: False
    )
    ended = 0
    for seed in range(12):
        text = walk(compiler, grammar, service, seed, "hm</think>" if after_thought else "")
        if text is None:
            continue
        ended += 1
        thought, content, made = message(text, form, thought=after_thought)
        assert (thought, content) == ("hm" if after_thought else "", "")
        assert made
        for name, arguments in made:
            check_call(name, arguments)
    assert ended >= 3


@pytest.mark.parametrize("form", ["hermes", "xml"])
def test_calls_in_free_text_keep_to_their_schemas(
    compiler: GrammarCompiler, form: ToolFormat
) -> None:
    grammar = grammar_text(
        None, calls(form, required=False), after_thought=False, special=lambda tag: False
    )
    good = {
        "hermes": 'Hm.\n<tool_call>\n{"name": "g", "arguments": {"on": true}}\n</tool_call>\nSo.',
        "xml": (
            "Hm.\n<tool_call>\n<function=g>\n<parameter=on>\ntrue\n</parameter>\n</function>\n"
            "</tool_call>\nSo."
        ),
    }[form]
    bad = good.replace("true", "12")
    for text, expected in ((good, True), ("no call at all", True), (bad, False)):
        assert accepts(compiler, grammar, text) == expected
    _, content, made = message(good, form)
    assert (content, made) == ("Hm.So.", [("g", '{"on": true}')])


def accepts(compiler: GrammarCompiler, grammar: str, text: str) -> bool:
    matcher = compiler.compile(grammar)
    for byte in text.encode():
        if not matcher.consume_tokens(byte_token(compiler, byte)):
            return False
    return matcher.is_accepting()


def byte_token(compiler: GrammarCompiler, byte: int) -> list[int]:
    ids: list[int] = compiler._tokenizer().tokenize_bytes(bytes([byte]))
    return ids


def test_an_answer_is_held_to_its_schema_or_is_a_call(compiler: GrammarCompiler) -> None:
    grammar = grammar_text(
        schema_entry(OTHER),
        calls("hermes", required=False),
        after_thought=True,
        special=lambda _: False,
    )
    call = '<tool_call>\n{"name": "g", "arguments": {"on": true}}\n</tool_call>'
    for text in ('hm</think>\n\n{"on": false}', f"</think>{call}"):
        assert accepts(compiler, grammar, text)
    for text in ('{"on": false}', 'hm</think>{"on": 1}', f"hm</think>text {call}"):
        assert not accepts(compiler, grammar, text)


async def grammar_of(
    http: httpx.AsyncClient, engine: ScriptedEngine, path: str, body: Fields
) -> str:
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    params = engine.requests[-1].params
    assert params.stop_token_ids == {3}
    return params.grammar


@pytest.mark.parametrize(
    ("fields", "good", "bad"),
    [
        ({"response_format": {"type": "json_object"}}, '{"a": [1]}', "[1]"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": OTHER}}},
            '{"on": true}',
            '{"on": 1}',
        ),
        ({"structured_outputs": {"json": OTHER}}, '{"on": true}', "{}"),
        ({"structured_outputs": {"json": json.dumps(OTHER)}}, '{"on": true}', "{}"),
        ({"structured_outputs": {"json_object": True}}, "{}", "1"),
        ({"structured_outputs": {"regex": "[a/]+"}}, "a/a", "b"),
        ({"structured_outputs": {"choice": ['a"b', "c\nd"]}}, 'a"b', "c"),
        ({"structured_outputs": {"grammar": 'start: "x"+'}}, "xx", "y"),
        ({"structured_outputs": {"grammar": 'root ::= "x" "y"*'}}, "xyy", "y"),
    ],
)
async def test_every_form_reaches_the_engine_from_both_endpoints(
    http: httpx.AsyncClient,
    engine: ScriptedEngine,
    compiler: GrammarCompiler,
    fields: Fields,
    good: str,
    bad: str,
) -> None:
    for path, body in (("/v1/completions", HELLO), ("/v1/chat/completions", CHAT)):
        grammar = await grammar_of(http, engine, path, body | fields)
        assert accepts(compiler, grammar, good)
        assert not accepts(compiler, grammar, bad)


async def test_text_is_free(http: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    body = CHAT | {"response_format": {"type": "text"}}
    assert await grammar_of(http, engine, "/v1/chat/completions", body) == ""


TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
TOOL_G = {"type": "function", "function": {"name": "g", "parameters": OTHER}}
CALL_F = '<tool_call>\n{"name": "f", "arguments": {"mode":"a","count":1}}\n</tool_call>'
CALL_G = '<tool_call>\n{"name": "g", "arguments": {"on": true}}\n</tool_call>'


@pytest.mark.parametrize(
    ("fields", "good", "bad"),
    [
        ({"tool_choice": "required"}, [CALL_F, CALL_G, f"{CALL_F}\n{CALL_G}"], ["text", ""]),
        (
            {"tool_choice": "required", "parallel_tool_calls": False},
            [CALL_F],
            [f"{CALL_F}\n{CALL_G}"],
        ),
        (
            {"tool_choice": {"type": "function", "function": {"name": "g"}}},
            [CALL_G],
            [CALL_F, f"{CALL_G}\n{CALL_G}", ""],
        ),
    ],
)
async def test_a_required_call_is_forced(
    http: httpx.AsyncClient,
    engine: ScriptedEngine,
    compiler: GrammarCompiler,
    fields: Fields,
    good: list[str],
    bad: list[str],
) -> None:
    body = CHAT | {"tools": [TOOL, TOOL_G]} | fields
    grammar = await grammar_of(http, engine, "/v1/chat/completions", body)
    assert all(accepts(compiler, grammar, text) for text in good)
    assert not any(accepts(compiler, grammar, text) for text in bad)


async def test_only_strict_functions_are_held_to_their_schema_when_calls_are_free(
    http: httpx.AsyncClient, engine: ScriptedEngine, compiler: GrammarCompiler
) -> None:
    body = CHAT | {"tools": [TOOL, TOOL_G]}
    assert await grammar_of(http, engine, "/v1/chat/completions", body) == ""
    function = cast(Mapping[str, object], TOOL["function"])
    strict = {"type": "function", "function": {**function, "strict": True}}
    grammar = await grammar_of(
        http, engine, "/v1/chat/completions", body | {"tools": [strict, TOOL_G]}
    )
    assert accepts(compiler, grammar, f"Hm {CALL_F}")
    assert not accepts(compiler, grammar, CALL_F.replace("1}", '"1"}'))
    assert accepts(compiler, grammar, CALL_G.replace("true", '"anything"'))


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", "'json_object'"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "is required"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
            "response_format",
            "cannot be used",
        ),
        ({"structured_outputs": {}}, "structured_outputs", "has nothing; allowed is exactly one"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "exactly"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs", "cannot be used"),
        ({"structured_outputs": {"regex": "(?=a)b"}}, "structured_outputs", "look-around"),
        ({"structured_outputs": {"json": "["}}, "structured_outputs", "no JSON"),
        ({"structured_outputs": {"json": "[]"}}, "structured_outputs", "which is an object"),
        ({"structured_outputs": {"json": 1}}, "structured_outputs.json", "as an object or as text"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least 1"),
        ({"structured_outputs": {"grammar": "x ::= ("}}, "structured_outputs", "cannot be read"),
        (
            {"structured_outputs": {"json_object": True, "whitespace_pattern": "x"}},
            "structured_outputs.whitespace_pattern",
            "not supported",
        ),
        ({"guided_json": {}}, "guided_json", "use structured_outputs"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "structured_outputs",
            "exclude each other",
        ),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos", "may end"),
        (
            {"response_format": {"type": "json_object"}, "min_tokens": 1},
            "min_tokens",
            "may end",
        ),
        ({"structured_outputs": {"regex": "a" * 9000}}, "structured_outputs", "allowed: 8000"),
    ],
)
async def test_what_cannot_be_held_to_is_refused(
    http: httpx.AsyncClient, fields: Fields, param: str, words: str
) -> None:
    response = await http.post("/v1/completions", json=HELLO | fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], words in error["message"]) == (param, True), error


async def test_a_schema_nested_too_deep_is_refused(http: httpx.AsyncClient) -> None:
    schema: Fields = {"type": "string"}
    for _ in range(40):
        schema = {"type": "array", "items": schema, "title": "t"}
        schema = {"properties": {"a": schema}}
    body = HELLO | {"structured_outputs": {"json": schema}}
    response = await http.post("/v1/completions", json=body)
    assert response.status_code == 400
    assert "nested" in response.json()["error"]["message"]


async def test_a_call_that_has_to_be_made_excludes_a_held_answer(http: httpx.AsyncClient) -> None:
    body = CHAT | {"tools": [TOOL], "tool_choice": "required"}
    body |= {"response_format": {"type": "json_object"}}
    response = await http.post("/v1/chat/completions", json=body)
    assert "excludes a tool_choice" in response.json()["error"]["message"]


class TestXml:
    @pytest.fixture
    def service(self, tiny_checkpoint: Path) -> Iterator[ModelService]:
        service = ModelService.from_folder(
            tiny_checkpoint,
            name="tiny",
            defaults=DEFAULTS,
            max_model_len=4000,
            vocab_size=512,
            tool_parser="xml",
        )
        yield service
        service.close()

    @pytest.mark.parametrize(
        ("properties", "words"),
        [
            ({"a": {"type": "string", "pattern": "^a"}}, "cannot be held to"),
            ({"a>b": {"type": "string"}}, "has no XML form"),
        ],
    )
    async def test_a_strict_function_that_xml_cannot_hold_is_refused(
        self, http: httpx.AsyncClient, properties: Fields, words: str
    ) -> None:
        function = {"name": "f", "strict": True, "parameters": {"properties": properties}}
        body = CHAT | {"tools": [{"type": "function", "function": function}]}
        response = await http.post("/v1/chat/completions", json=body)
        assert response.status_code == 400
        assert words in response.json()["error"]["message"]


def test_a_tag_that_is_a_special_token_is_not_written_in_quotes() -> None:
    text = grammar_text(
        None, calls("hermes", required=True), after_thought=True, special=lambda tag: True
    )
    lark = json.loads(text)["grammars"][0]["lark_grammar"]
    assert "call_tag: <tool_call>\n" in lark
    assert "text_to_thought_end: TEXT </think>\n" in lark


def test_a_grammar_that_was_right_is_not_compiled_again(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = GrammarCompiler(tiny_checkpoint / "tokenizer.json", 512, [3])
    compiled: list[str] = []
    compile_it = compiler.compile

    def counted(grammar: str) -> object:
        compiled.append(grammar)
        return compile_it(grammar)

    monkeypatch.setattr(compiler, "compile", counted)
    for _ in range(3):
        compiler.check('start: "a"')
    for _ in range(2):
        with pytest.raises(InvalidRequestError):
            compiler.check("start: b")
    assert compiled == ['start: "a"', "start: b", "start: b"]
