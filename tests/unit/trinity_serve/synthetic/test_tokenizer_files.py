from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cluster.model_config import AfmoeConfig
from trinity_serve.synthetic.tokenizer_files import (
    SPECIAL_TOKENS,
    tokenizer_json,
    write_tokenizer,
)

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
SMALL_TOKENIZER = Tokenizer.from_str(tokenizer_json(512))
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": "<1>"}}}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json(4096))


@pytest.fixture(scope="module")
def hub_tokenizer(tiny_checkpoint: Path) -> PreTrainedTokenizerBase:
    """What a user of transformers gets from the written files."""
    loaded = AutoTokenizer.from_pretrained(tiny_checkpoint)
    assert isinstance(loaded, PreTrainedTokenizerBase)
    return loaded


def chat(tokenizer: PreTrainedTokenizerBase, messages: list[object], **extra: object) -> str:
    # Its own annotations allow neither tool calls nor template variables, which it takes.
    render: Callable[..., object] = tokenizer.apply_chat_template
    text = render(messages, tokenize=False, **extra)
    assert isinstance(text, str)
    return text


def test_training_gives_the_same_file_every_time() -> None:
    assert tokenizer_json(512) == tokenizer_json(512)


def test_special_tokens_have_trinitys_ids(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(13))
    assert tokenizer.encode("<|im_start|>user\n").ids[0] == 2
    assert tokenizer.get_vocab_size() == 4096


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_text_without_control_tokens_survives_the_round_trip(text: str) -> None:
    assert (
        SMALL_TOKENIZER.decode(SMALL_TOKENIZER.encode(text).ids, skip_special_tokens=False) == text
    )


def test_digits_are_grouped_in_threes_from_the_right(tokenizer: Tokenizer) -> None:
    words = tokenizer.pre_tokenizer.pre_tokenize_str("1234567")
    assert [word for word, _ in words] == ["1", "234", "567"]


def test_common_words_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode(" the water").ids) == 2


def test_a_vocabulary_below_the_byte_alphabet_gets_no_tokenizer(
    tiny_config: AfmoeConfig, tmp_path: Path
) -> None:
    write_tokenizer(tmp_path, replace(tiny_config, vocab_size=268))
    assert list(tmp_path.iterdir()) == []


def test_transformers_loads_the_files(hub_tokenizer: PreTrainedTokenizerBase) -> None:
    assert hub_tokenizer.eos_token_id == 3
    assert hub_tokenizer.pad_token_id == 12
    ids = hub_tokenizer("Hello")["input_ids"]
    assert isinstance(ids, list)
    assert 0 not in ids
    assert hub_tokenizer.decode(ids) == "Hello"


def test_a_chat_is_chatml(hub_tokenizer: PreTrainedTokenizerBase) -> None:
    messages: list[object] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    assert chat(hub_tokenizer, messages, add_generation_prompt=True) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_tools_are_listed_in_the_system_message(hub_tokenizer: PreTrainedTokenizerBase) -> None:
    text = chat(hub_tokenizer, [{"role": "user", "content": "1+1?"}], tools=[TOOL])
    assert text.startswith("<|im_start|>system\n# Tools\n")
    assert '<tools>\n{"type": "function", "function": {"name": "add"' in text
    assert text.endswith("<|im_start|>user\n1+1?<|im_end|>\n")


def test_calls_and_results_are_written_as_hermes_does(
    hub_tokenizer: PreTrainedTokenizerBase,
) -> None:
    messages: list[object] = [
        {"role": "assistant", "content": "", "reasoning": "Add.", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "2"},
        {"role": "tool", "content": "3"},
    ]
    call = '<tool_call>\n{"name": "add", "arguments": {"a": "<1>"}}\n</tool_call>'
    assert chat(hub_tokenizer, messages) == (
        f"<|im_start|>assistant\n<think>\nAdd.\n</think>\n\n{call}\n{call}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n2\n</tool_response>\n"
        "<tool_response>\n3\n</tool_response><|im_end|>\n"
    )


def test_thinking_opens_the_reasoning_block(hub_tokenizer: PreTrainedTokenizerBase) -> None:
    messages: list[object] = [{"role": "user", "content": "Hi"}]
    text = chat(hub_tokenizer, messages, add_generation_prompt=True, enable_thinking=True)
    assert text.endswith("<|im_start|>assistant\n<think>\n")
