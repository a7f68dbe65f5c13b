"""Thought that is cut short: when, by which tokens, and the same on every attempt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from cluster.errors import InvalidRequestError
from tests.support.serving import Serving, config_for, drain, one_thread, open_serving
from tests.unit.trinity_serve.engine.fakes import FakeRunner, make_config, make_request
from trinity_serve.api.tokenizer import TextTokenizer
from trinity_serve.engine.engine import Engine
from trinity_serve.engine.grammar import GrammarCompiler
from trinity_serve.engine.request import GenerationRequest, SamplingParams, ThoughtLimit
from trinity_serve.engine.thought import BytesOfToken, ThoughtBudget

PIECES = ["<think>", "</think>", "<", "/", "think", ">", "\n", "a", " b", "</th", "ink>x", "hm</"]
END = (PIECES.index("\n"), PIECES.index("</think>"), PIECES.index("\n"), PIECES.index("\n"))
NONE = np.zeros(0, np.int64)


def tokens() -> Future[BytesOfToken]:
    future: Future[BytesOfToken] = Future()
    future.set_result(lambda token_id: PIECES[token_id].encode())
    return future


def limit_of(budget: int, *, opened: bool) -> ThoughtLimit:
    return ThoughtLimit(budget, "" if opened else "<think>", "</think>", END)


def ids(*texts: str) -> list[int]:
    return [PIECES.index(text) for text in texts]


def text_of(token_ids: Sequence[int]) -> str:
    return "".join(PIECES[token_id] for token_id in token_ids)


def said(limit: ThoughtLimit, wishes: Sequence[int], emitted: Sequence[int] = ()) -> list[int]:
    """Return what comes out when a model would say `wishes`, from `emitted` on."""
    budget, made = ThoughtBudget(limit, tokens()), list(emitted)
    for wish in wishes[len(made) :]:
        logits = np.zeros(len(PIECES), np.float32)
        if budget.is_active(len(made)):
            budget.apply(logits, NONE, np.array(made, np.int64))
        allowed = np.flatnonzero(np.isfinite(logits)).tolist()
        made.append(allowed[0] if len(allowed) == 1 else wish)
    return made


def test_a_spent_budget_ends_the_thought_and_the_rest_is_free() -> None:
    made = said(limit_of(3, opened=True), ids(*["a"] * 12))
    assert text_of(made) == "aaa\n</think>\n\naaaaa"


def test_no_budget_at_all_ends_it_at_once() -> None:
    assert text_of(said(limit_of(0, opened=True), ids(*["a"] * 6))) == "\n</think>\n\naa"


def test_thought_that_ends_by_itself_is_left_alone() -> None:
    wishes = ids("a", "</th", "ink>x", *["a"] * 9)
    assert said(limit_of(4, opened=True), wishes) == wishes


def test_a_block_that_the_model_opens_is_counted_from_its_tag_on() -> None:
    wishes = ids("\n", "<", "think", ">", *["a"] * 9)
    made = said(limit_of(2, opened=False), wishes)
    assert text_of(made) == "\n<think>aa\n</think>\n\naaa"


@pytest.mark.parametrize("first", [["a"], ["<", "a"], ["<", "think", "a"], ["think", ">"]])
def test_an_output_that_opens_no_block_is_never_touched(first: list[str]) -> None:
    wishes = ids(*first, "<think>", *["a"] * 9)
    assert said(limit_of(0, opened=False), wishes) == wishes


def test_the_processor_rests_once_the_block_has_ended() -> None:
    budget = ThoughtBudget(limit_of(9, opened=True), tokens())
    budget.apply(np.zeros(len(PIECES), np.float32), NONE, np.array(ids("a", "</think>")))
    assert not budget.is_active(2)


def test_an_end_that_a_grammar_did_not_let_through_is_begun_again() -> None:
    budget = ThoughtBudget(limit_of(1, opened=True), tokens())
    made = np.array(ids("a", "\n", "a"))
    logits = np.zeros(len(PIECES), np.float32)
    budget.apply(logits, NONE, made)
    assert np.flatnonzero(np.isfinite(logits)).tolist() == [END[0]]


@given(
    wishes=st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=30),
    budget=st.integers(0, 12),
    opened=st.booleans(),
    data=st.data(),
)
def test_an_attempt_that_begins_anywhere_says_the_same(
    wishes: list[int], budget: int, opened: bool, data: st.DataObject
) -> None:
    limit = limit_of(budget, opened=opened)
    made = said(limit, wishes)
    cut = data.draw(st.integers(0, len(made)))
    assert said(limit, wishes, made[:cut]) == made


@given(
    wishes=st.lists(st.integers(0, len(PIECES) - 1), min_size=20, max_size=30),
    budget=st.integers(0, 12),
)
def test_thought_never_has_more_tokens_than_its_budget(wishes: list[int], budget: int) -> None:
    made = said(limit_of(budget, opened=True), wishes)
    thought = 0
    while "</think>" not in text_of(made[: thought + 1]):
        thought += 1
    # The tag may begin in the last token of the thought, or be forced after a line break.
    assert thought <= budget + 1


@pytest.fixture(scope="module")
def serving(tiny_checkpoint: Path) -> Iterator[Serving]:
    with one_thread():
        yield open_serving(config_for(tiny_checkpoint, num_shards=2))


def outputs(serving: Serving, requests: Sequence[GenerationRequest]) -> list[list[int]]:
    """Return each request's tokens, those of earlier attempts first."""
    made = {request.request_id: list(request.emitted_ids) for request in requests}
    for request in requests:
        serving.engine.submit(request)
    for event in drain(serving.engine):
        assert event.error is None, event.error
        if event.token_id is not None:
            made[event.request_id].append(event.token_id)
    return list(made.values())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_replay_from_every_token_gives_the_undisturbed_output(
    serving: Serving, tiny_checkpoint: Path, temperature: float
) -> None:
    tokenizer = TextTokenizer.from_folder(tiny_checkpoint)
    end_ids = tuple(tokenizer.encode("\n</think>\n\n", add_special_tokens=False))
    limit = ThoughtLimit(5, "", "</think>", end_ids)
    params = SamplingParams(
        max_tokens=20, seed=3, temperature=temperature, ignore_eos=True, thought=limit
    )
    request = GenerationRequest("r", 0, (60, 61, 62), params)
    [made] = outputs(serving, [request])
    assert tuple(made[5 : 5 + len(end_ids)]) == end_ids
    again = [
        replace(request, request_id=f"r{cut}", attempt=1, emitted_ids=tuple(made[:cut]))
        for cut in range(len(made))
    ]
    assert outputs(serving, again) == [made] * len(again)


def test_a_tag_that_is_one_special_token_has_a_text_too(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("</think>", special=True, normalized=False)])
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    compiler = GrammarCompiler(path, tokenizer.get_vocab_size(), [3])
    assert compiler.special_token("</think>")
    token_id = tokenizer.token_to_id("</think>")
    assert token_id is not None
    assert compiler.bytes_of_token()(token_id) == b"</think>"


def test_an_engine_without_a_tokenizer_refuses_a_budget() -> None:
    config = make_config()
    engine = Engine(FakeRunner(config), config)
    with pytest.raises(InvalidRequestError, match="thinking_token_budget cannot be held to"):
        engine.submit(make_request(thought=limit_of(3, opened=True)))
    assert not engine.has_work
