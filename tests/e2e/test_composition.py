"""Grammars, tools, thought, choices, stop strings and log-probabilities, all at once, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import jsonschema  # type: ignore[import-untyped]
import pytest

from tests.support.composition import (
    BUDGET,
    SCHEMA,
    Case,
    Said,
    cases_of_all_pairs,
    every_case,
    said_of_stream,
    said_of_whole,
)
from tests.support.http import inline_server
from tests.support.serving import config_for
from trinity_serve.api.tokenizer import TextTokenizer

PAIRS = cases_of_all_pairs()
REST = [case for case in every_case() if case not in PAIRS]


@pytest.fixture(scope="module")
def http(tiny_checkpoint: Path) -> Iterator[httpx.Client]:
    with (
        inline_server(config_for(tiny_checkpoint, num_shards=2)) as url,
        httpx.Client(base_url=url, timeout=60.0) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> TextTokenizer:
    return TextTokenizer.from_folder(tiny_checkpoint)


def whole_and_streamed(http: httpx.Client, case: Case) -> list[Said]:
    """Return what is said, having seen that a stream says the same."""
    body = case.body()
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    whole = said_of_whole(answer.json())
    streamed = http.post("/v1/chat/completions", json=body | {"stream": True})
    assert said_of_stream(streamed.text, len(whole)) == whole
    return whole


def check(case: Case, said: Said, tokenizer: TextTokenizer) -> None:
    """What was asked for holds, whatever else was asked for."""
    if case["logprobs"] == "two":
        assert len(said.logprobs) == len(said.token_ids)
    if case["thought"] == "cut short":
        # The budget, then the tag after a line break.
        opening = tokenizer.decode(said.token_ids[: BUDGET + 20], skip_special_tokens=False)
        assert "</think>" in opening or said.stop or len(said.token_ids) < BUDGET
    if case["thought"] == "none":
        assert said.reasoning == ""
    if said.finish == "length" or said.stop is not None:
        return
    if case["held"] in ("schema", "schema or call") and not said.calls:
        jsonschema.validate(json.loads(said.content), SCHEMA)
    if case["held"] in ("required", "named", "strict", "schema or call"):
        for name, arguments in said.calls:
            assert name in ("tell", "ask")
            jsonschema.validate(
                json.loads(arguments), SCHEMA if case["held"] != "schema or call" else {}
            )
    if case["held"] in ("required", "named") and not said.reasoning:
        assert said.finish == "tool_calls"
        assert said.calls


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_what_is_asked_for_together_holds_together_and_streams_the_same(
    http: httpx.Client, tokenizer: TextTokenizer, case: Case
) -> None:
    for said in whole_and_streamed(http, case):
        check(case, said, tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("case", REST, ids=str)
def test_every_other_combination_holds_too(
    http: httpx.Client, tokenizer: TextTokenizer, case: Case
) -> None:
    for said in whole_and_streamed(http, case):
        check(case, said, tokenizer)
