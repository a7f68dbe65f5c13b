from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from cluster.errors import ConfigError
from trinity_serve.api.tokenizer import TextTokenizer


def test_decoding_what_was_encoded_gives_the_text_back(tokenizer: TextTokenizer) -> None:
    @given(st.text(st.characters(codec="utf-8"), max_size=60))
    def check(text: str) -> None:
        ids = tokenizer.encode(text, add_special_tokens=True)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text

    check()


def test_decoding_equals_the_tokenizers_library_for_any_ids(
    tokenizer: TextTokenizer, tiny_checkpoint: Path
) -> None:
    library = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))

    @given(st.lists(st.integers(0, 700), max_size=40), st.booleans())
    def check(ids: list[int], skip: bool) -> None:
        expected = library.decode(ids, skip_special_tokens=skip)
        assert tokenizer.decode(ids, skip_special_tokens=skip) == expected

    check()


def test_ids_without_a_token_have_no_bytes(tokenizer: TextTokenizer) -> None:
    assert tokenizer.token_bytes(tokenizer.num_ids) == b""
    assert tokenizer.token_bytes(10**9) == b""
    assert tokenizer.token_bytes(-1) == b""
    assert tokenizer.token_text(10**9) == ""


def test_a_token_that_is_part_of_a_character_is_shown_by_its_bytes(
    tokenizer: TextTokenizer,
) -> None:
    (first, *_) = tokenizer.encode("☃", add_special_tokens=False)
    assert tokenizer.token_text(first) == "bytes:\\xe2"


def test_control_tokens_are_special_and_words_are_not(tokenizer: TextTokenizer) -> None:
    assert tokenizer.is_special(3)
    assert not tokenizer.is_special(tokenizer.encode("a", add_special_tokens=False)[0])


def test_an_added_token_with_a_space_keeps_its_own_text() -> None:
    library = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    library.decoder = decoders.ByteLevel()
    library.add_tokens(["two words"])
    tokenizer = TextTokenizer(library, "test")
    assert tokenizer.decode([0, 1], skip_special_tokens=True) == "atwo words"


def test_a_decoder_that_is_not_byte_level_is_refused_by_name() -> None:
    library = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    library.decoder = decoders.Metaspace()
    with pytest.raises(ConfigError, match=r"Metaspace is not supported.*ByteLevel"):
        TextTokenizer(library, "tokenizer.json")


def test_a_missing_tokenizer_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json: the file is missing"):
        TextTokenizer.from_folder(tmp_path)


def test_a_damaged_tokenizer_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        TextTokenizer.from_folder(tmp_path)
