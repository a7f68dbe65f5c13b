from __future__ import annotations

import pytest

from cluster.errors import DeadlineExceededError, NotReadyError
from trinity_serve.api.choice import Choice, ChoiceDecoder, Delta
from trinity_serve.api.sampling import TextOptions
from trinity_serve.api.tokenizer import TextTokenizer
from trinity_serve.engine.request import (
    FinishReason,
    GenerationRequest,
    SamplingParams,
    TokenEvent,
)

REQUEST = GenerationRequest("r", 0, (1,), SamplingParams(max_tokens=99, seed=0))


def _decode(
    tokenizer: TextTokenizer, text: str, options: TextOptions, *, last: TokenEvent | None = None
) -> tuple[ChoiceDecoder, list[Delta]]:
    decoder = ChoiceDecoder(Choice(0, REQUEST, options), tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False)
    events = [TokenEvent("r", 0, 0, index, token_id) for index, token_id in enumerate(ids)]
    end = last or TokenEvent("r", 0, 0, len(ids), None, finish=FinishReason.LENGTH)
    return decoder, decoder.push_all([*events, end])


def _text(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def test_text_and_end_come_through(tokenizer: TextTokenizer) -> None:
    decoder, deltas = _decode(tokenizer, "Hello ☃!", TextOptions())
    assert _text(deltas) == "Hello ☃!"
    assert deltas[-1].finish is FinishReason.LENGTH
    assert decoder.finished


def test_a_stop_string_over_several_tokens_ends_the_choice_there(tokenizer: TextTokenizer) -> None:
    decoder, deltas = _decode(tokenizer, "one two three four", TextOptions(("o th",)))
    assert _text(deltas) == "one tw"
    assert (deltas[-1].finish, deltas[-1].stop_reason) == (FinishReason.STOP, "o th")
    assert decoder.num_tokens < len(
        tokenizer.encode("one two three four", add_special_tokens=False)
    )
    assert decoder.push_all([TokenEvent("r", 0, 0, 9, 60)]) == []


def test_what_could_have_been_a_stop_comes_at_the_end(tokenizer: TextTokenizer) -> None:
    _, deltas = _decode(tokenizer, "wait EN", TextOptions(("END",)))
    assert _text(deltas) == "wait EN"
    assert deltas[-1].text == "EN"


def test_stop_strings_count_after_min_tokens_only(tokenizer: TextTokenizer) -> None:
    first = len(tokenizer.encode("a b a b", add_special_tokens=False)) - 1
    _, deltas = _decode(tokenizer, "a b a b", TextOptions(("b",), min_tokens=first))
    assert _text(deltas) == "a b a "


def test_an_eos_token_counts_but_is_not_shown_nor_named(tokenizer: TextTokenizer) -> None:
    eos = TokenEvent("r", 0, 0, 1, 3, finish=FinishReason.STOP, stop_token_id=3)
    options = TextOptions(skip_special_tokens=False)
    decoder, deltas = _decode(tokenizer, "a", options, last=eos)
    assert (_text(deltas), deltas[-1].stop_reason, decoder.num_tokens) == ("a", None, 2)


def test_an_own_stop_id_is_the_reason_and_shown_when_asked(tokenizer: TextTokenizer) -> None:
    (token,) = tokenizer.encode("z", add_special_tokens=False)
    end = TokenEvent("r", 0, 0, 1, token, finish=FinishReason.STOP, stop_token_id=token)
    own = frozenset({token})
    _, hidden = _decode(tokenizer, "a", TextOptions(own_stop_ids=own), last=end)
    _, shown = _decode(tokenizer, "a", TextOptions(own_stop_ids=own, include_stop=True), last=end)
    assert (_text(hidden), hidden[-1].stop_reason) == ("a", token)
    assert _text(shown) == "az"


def test_offsets_are_where_each_tokens_text_starts(tokenizer: TextTokenizer) -> None:
    _, deltas = _decode(tokenizer, "ab ☃", TextOptions(("never",)))
    ids = [delta.token_id for delta in deltas if delta.token_id is not None]
    for position, delta in enumerate(deltas[:-1]):
        before = tokenizer.decode(ids[:position], skip_special_tokens=True).rstrip("\ufffd")
        assert delta.text_offset == len(before)


def test_an_error_event_raises_its_error(tokenizer: TextTokenizer) -> None:
    error = DeadlineExceededError("it", 1.0)
    last = TokenEvent("r", 0, 0, 1, None, finish=FinishReason.ERROR, error=error)
    with pytest.raises(DeadlineExceededError):
        _decode(tokenizer, "a", TextOptions(), last=last)


def test_an_end_that_nobody_asked_for_may_be_tried_again(tokenizer: TextTokenizer) -> None:
    last = TokenEvent("r", 0, 0, 1, None, finish=FinishReason.CANCELLED)
    with pytest.raises(NotReadyError):
        _decode(tokenizer, "a", TextOptions(), last=last)
