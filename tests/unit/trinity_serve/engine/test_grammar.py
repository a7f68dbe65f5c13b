"""Outputs held to grammars: masks, replay, and what a hostile grammar costs."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import numpy as np
import pytest
from llguidance import LLMatcher

from cluster.errors import InvalidRequestError
from tests.support.serving import Serving, config_for, drain, one_thread, open_serving
from tests.unit.trinity_serve.engine.fakes import FakeRunner, make_config, make_request
from trinity_serve.api.tokenizer import TextTokenizer
from trinity_serve.engine.engine import Engine
from trinity_serve.engine.grammar import GrammarCompiler, GrammarMasks, GrammarState
from trinity_serve.engine.request import (
    FinishReason,
    GenerationRequest,
    SamplingParams,
    TokenEvent,
)

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["a", "b"]}, "count": {"type": "integer"}},
    "required": ["kind", "count"],
    "additionalProperties": False,
}
VOCAB_SIZE, EOS = 512, 3


def of_schema(schema: object) -> str:
    return json.dumps({"grammars": [{"json_schema": schema}]})


def of_regex(regex: str) -> str:
    return str(LLMatcher.grammar_from_regex(regex))


@pytest.fixture(scope="module")
def compiler(tiny_checkpoint: Path) -> GrammarCompiler:
    return GrammarCompiler(tiny_checkpoint / "tokenizer.json", VOCAB_SIZE, [EOS])


@pytest.fixture
def masks(compiler: GrammarCompiler) -> Iterator[GrammarMasks]:
    masks = GrammarMasks(compiler, VOCAB_SIZE)
    yield masks
    masks.close()


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> TextTokenizer:
    return TextTokenizer.from_folder(tiny_checkpoint)


@pytest.fixture(scope="module")
def serving(tiny_checkpoint: Path) -> Iterator[Serving]:
    with one_thread():
        yield open_serving(config_for(tiny_checkpoint, num_shards=2))


def allowed(state: GrammarState) -> list[int]:
    logits = np.zeros(VOCAB_SIZE, np.float32)
    empty = np.zeros(0, np.int64)
    state.apply(logits, empty, empty)
    found: list[int] = np.flatnonzero(np.isfinite(logits)).tolist()
    return found


def test_only_what_the_grammar_allows_is_left(
    masks: GrammarMasks, tokenizer: TextTokenizer
) -> None:
    state = masks.open(of_regex("[ab]c"), [])
    texts = {tokenizer.token_text(token) for token in allowed(state)}
    assert texts == {"a", "b"} | (texts & {"ac", "bc"})
    [a] = tokenizer.encode("a", add_special_tokens=False)
    masks.advance([(state, a)])
    assert [tokenizer.token_text(token) for token in allowed(state)] == ["c"]
    [c] = tokenizer.encode("c", add_special_tokens=False)
    masks.advance([(state, c)])
    assert allowed(state) == [EOS]


def test_a_grammar_wins_over_what_forbids_all_that_it_allows(masks: GrammarMasks) -> None:
    state = masks.open(of_regex("[ab]c"), [])
    logits = np.full(VOCAB_SIZE, -np.inf, np.float32)
    logits[200] = 1.0
    empty = np.zeros(0, np.int64)
    state.apply(logits, empty, empty)
    assert np.flatnonzero(np.isfinite(logits)).tolist() == allowed(state)


def test_emitted_tokens_put_a_new_state_where_the_old_one_was(
    masks: GrammarMasks, tokenizer: TextTokenizer
) -> None:
    ids = tokenizer.encode('{"kind": "a", "count": 1', add_special_tokens=False)
    state = masks.open(of_schema(SCHEMA), [])
    for count, token in enumerate(ids, start=1):
        masks.advance([(state, token)])
        assert allowed(state) == allowed(masks.open(of_schema(SCHEMA), ids[:count]))


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (of_regex("("), "cannot be used"),
        (of_schema({"type": "rubbish"}), "cannot be used"),
        (of_schema({"$ref": "#"}), "cannot be used"),
        (of_schema({"$ref": "https://example.com/x.json"}), "does not fetch"),
        ("start: nowhere", "cannot be used"),
        ("", "cannot be used"),
    ],
)
def test_what_is_wrong_with_a_grammar_is_said(
    compiler: GrammarCompiler, masks: GrammarMasks, grammar: str, words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        compiler.check(grammar)
    with pytest.raises(InvalidRequestError, match=words):
        allowed(masks.open(grammar, []))


HOSTILE = {
    "huge enum": of_schema({"enum": [f"value {number}" for number in range(20_000)]}),
    "many properties": of_schema(
        {"properties": {f"k{number}": {"type": "integer"} for number in range(3000)}}
    ),
    "alternatives multiplied": of_schema(
        {"allOf": [{"anyOf": [{"required": [f"{i}{j}"]} for j in range(9)]} for i in range(9)]}
    ),
    "counted repetition": of_regex("(.{0,1000}){0,1000}"),
    "exponential automaton": of_regex("(a|b)*a(a|b){24}c"),
    "catastrophic for backtracking": of_regex("(a+)+b"),
    "ambiguous": 'start: start start | "a" | "b"',
    "deep": of_regex("(" * 5000 + ")" * 5000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_is_refused_or_cheap(
    compiler: GrammarCompiler, masks: GrammarMasks, tokenizer: TextTokenizer, name: str
) -> None:
    """Compiled and stepped through 60 tokens, or refused on the way, within seconds."""
    began_s = time.monotonic()
    rng = np.random.default_rng(1)
    with contextlib.suppress(InvalidRequestError):
        state = masks.open(HOSTILE[name], [])
        for _ in range(60):
            token = int(rng.choice(allowed(state)))
            if token == EOS:
                break
            masks.advance([(state, token)])
    assert time.monotonic() - began_s < 8.0


PEAK_OF_HOSTILE = """
import json, resource, sys
from pathlib import Path
from cluster.errors import InvalidRequestError
from trinity_serve.engine.grammar import GrammarCompiler

compiler = GrammarCompiler(Path(sys.argv[1]), int(sys.argv[2]), [3])
compiler.check(json.dumps({"grammars": [{"json_schema": {"type": "object"}}]}))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for grammar in json.load(sys.stdin):
    try:
        matcher = compiler.compile(grammar)
        for _ in range(60):
            tokens = matcher.compute_ff_tokens() or [
                token for token in range(4, int(sys.argv[2])) if matcher.validate_tokens([token])
            ][:1]
            if not tokens or not matcher.consume_token(tokens[0]):
                break
            matcher.compute_bitmask()
    except InvalidRequestError:
        pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_hostile_grammars_take_little_memory(tiny_checkpoint: Path) -> None:
    """In a process of its own, where nothing else has made the peak."""
    arguments = [str(tiny_checkpoint / "tokenizer.json"), str(VOCAB_SIZE)]
    done = subprocess.run(
        [sys.executable, "-c", PEAK_OF_HOSTILE, *arguments],
        input=json.dumps(list(HOSTILE.values())),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 500


def test_an_engine_without_a_tokenizer_refuses_grammars() -> None:
    config = make_config()
    engine = Engine(FakeRunner(config), config)
    with pytest.raises(InvalidRequestError, match="no tokenizer"):
        engine.submit(make_request(grammar="x"))


def request(number: int, grammar: str, **changes: object) -> GenerationRequest:
    params = SamplingParams(
        max_tokens=60,
        seed=number,
        temperature=1.5,
        top_p=1.0,
        stop_token_ids=frozenset({EOS}),
        grammar=grammar,
    )
    params = replace(params, **changes)  # type: ignore[arg-type]
    return GenerationRequest(f"r{number}", 0, (20 + number, 30, 40), params)


def run(serving: Serving, requests: list[GenerationRequest]) -> dict[str, list[TokenEvent]]:
    for one in requests:
        serving.engine.submit(one)
    events: dict[str, list[TokenEvent]] = {one.request_id: [] for one in requests}
    for event in drain(serving.engine):
        events[event.request_id].append(event)
    return events


def text_of(events: list[TokenEvent], tokenizer: TextTokenizer) -> str:
    ids = [event.token_id for event in events if event.token_id not in (None, EOS)]
    return tokenizer.decode([token for token in ids if token is not None], skip_special_tokens=True)


def test_thirty_two_different_outputs_are_valid_or_cut_short(
    serving: Serving, tokenizer: TextTokenizer
) -> None:
    grammars = [of_schema(SCHEMA), of_regex("[0-9]{3}-[a-z]{2}"), 'start: "yes" | "no"', ""]
    events = run(serving, [request(number, grammars[number % 4]) for number in range(32)])
    finished = 0
    for number in range(32):
        own = events[f"r{number}"]
        text, finish = text_of(own, tokenizer), own[-1].finish
        assert own[-1].error is None
        if finish is FinishReason.LENGTH or number % 4 == 3:
            continue
        finished += 1
        if number % 4 == 0:
            jsonschema.validate(json.loads(text), SCHEMA)
        elif number % 4 == 1:
            digits, letters = text.split("-")
            assert len(digits) == 3
            assert len(letters) == 2
        else:
            assert text in ("yes", "no")
    assert finished >= 20


def test_a_replay_from_any_token_goes_on_as_if_nothing_had_been(serving: Serving) -> None:
    whole = request(7, of_schema(SCHEMA))
    tokens = [event.token_id for event in run(serving, [whole])["r7"]]
    ids = [token for token in tokens if token is not None]
    for done in range(1, len(ids), 3):
        rest = replace(whole, attempt=done, emitted_ids=tuple(ids[:done]))
        assert [event.token_id for event in run(serving, [rest])["r7"]] == tokens[done:]


def test_a_bad_grammar_fails_its_request_alone(serving: Serving) -> None:
    events = run(serving, [request(1, "start: nowhere"), request(2, 'start: "yes"')])
    assert isinstance(events["r1"][-1].error, InvalidRequestError)
    assert events["r2"][-1].finish is FinishReason.STOP
    serving.engine.check()


def test_other_ways_to_choose_tokens_go_along_with_a_grammar(
    serving: Serving, tokenizer: TextTokenizer
) -> None:
    changes: list[dict[str, object]] = [
        {"temperature": 0.0},
        {"top_k": 1},
        {"num_logprobs": 2},
        {"allowed_token_ids": frozenset({100})},
        {"logit_bias": ((EOS, 100.0),)},
        {"frequency_penalty": 2.0, "repetition_penalty": 1.5},
    ]
    requests = [
        request(number, 'start: "yes" | "no"', **change) for number, change in enumerate(changes)
    ]
    events = run(serving, requests)
    for one in requests:
        assert text_of(events[one.request_id], tokenizer) in ("yes", "no")


@pytest.mark.parametrize("vocab_size", [8, 13, VOCAB_SIZE])
def test_a_mask_adds_nothing_to_what_is_allowed_and_forbids_the_rest(vocab_size: int) -> None:
    state = GrammarState(vocab_size)
    state._job = Future()
    state._job.set_result(None)
    mask = np.random.default_rng(vocab_size).integers(0, 256, 4 * (vocab_size + 31) // 32 + 4)
    state.spread(mask.astype(np.uint8).tobytes())
    logits_V = np.linspace(-3.0, 3.0, vocab_size, dtype=np.float32)
    held_V = logits_V.copy()
    state.apply(held_V, np.array([], np.int64), np.array([], np.int64))
    for token_id in range(vocab_size):
        allowed = mask[token_id // 8] >> token_id % 8 & 1
        assert held_V[token_id] == (logits_V[token_id] if allowed else -np.inf)
