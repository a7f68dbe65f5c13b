from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trinity_serve.api.detokenizer import IncrementalDetokenizer
from trinity_serve.api.tokenizer import TextTokenizer


def _parts(tokenizer: TextTokenizer, ids: list[int], *, skip: bool = True) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


def test_the_joined_parts_equal_the_whole_decode_for_any_ids(tokenizer: TextTokenizer) -> None:
    @given(st.lists(st.integers(0, 700), max_size=60), st.booleans())
    def check(ids: list[int], skip: bool) -> None:
        whole = tokenizer.decode(ids, skip_special_tokens=skip)
        assert "".join(_parts(tokenizer, ids, skip=skip)) == whole

    check()


def test_no_part_of_valid_text_holds_half_a_character(tokenizer: TextTokenizer) -> None:
    @given(st.text(st.characters(codec="utf-8", min_codepoint=0x80, exclude_characters="\ufffd")))
    def check(text: str) -> None:
        ids = tokenizer.encode(text, add_special_tokens=False)
        parts = _parts(tokenizer, ids)
        assert all("\ufffd" not in part for part in parts)
        assert "".join(parts) == text

    check()


def test_a_character_comes_with_its_last_byte_and_not_before(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("☃", add_special_tokens=False)
    assert len(ids) == 3, "the tiny vocabulary has no token for it"
    assert _parts(tokenizer, ids) == ["", "", "☃", ""]


def test_an_unfinished_character_becomes_a_replacement_at_the_end(
    tokenizer: TextTokenizer,
) -> None:
    ids = tokenizer.encode("☃", add_special_tokens=False)[:2]
    assert _parts(tokenizer, ids) == ["", "", "\ufffd"]


def test_control_tokens_are_hidden_or_shown_as_asked(tokenizer: TextTokenizer) -> None:
    assert "".join(_parts(tokenizer, [3])) == ""
    assert "".join(_parts(tokenizer, [3], skip=False)) == "<|im_end|>"
