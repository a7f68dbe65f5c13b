"""A byte-level BPE tokenizer in Trinity's form, trained on the spot, with its Hub files.

The special ids are Trinity's (0 to 12; 11 has no published name). Digits go in groups of three
from the right, runs of scripts without spaces stand alone, and whitespace goes with what follows.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from cluster.model_config import AfmoeConfig
from trinity_serve.synthetic.corpus import corpus
from trinity_serve.synthetic.hub_json import write_json

SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|start|>",
    "<|channel|>",
    "<|message|>",
    "<|end|>",
    "<|fitm_start|>",
    "<|fitm_end|>",
    "<|reserved_11|>",
    "<|pad|>",
)
"""In the order of their ids."""

_MAX_VOCAB = 4096
"""A larger vocabulary in the configuration is padding, as the last rows of Trinity's are."""

_MIN_VOCAB = len(SPECIAL_TOKENS) + 256

_DIGITS = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Hangul}]+"
_WORDS = (
    r"[!-/:-@\[-`{-~](?=[A-Za-z])[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_tokenizer(folder: Path, config: AfmoeConfig) -> None:
    """Write tokenizer.json, its two companions and the chat template.

    A vocabulary too small for 256 bytes and the special tokens gets no tokenizer: such a model can
    be driven by ids only.
    """
    if config.vocab_size < _MIN_VOCAB:
        return
    vocab_size = min(config.vocab_size, _MAX_VOCAB)
    (folder / "tokenizer.json").write_text(tokenizer_json(vocab_size), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", _tokenizer_config(config))
    write_json(folder / "special_tokens_map.json", _special_tokens_map(config))
    template = files("trinity_serve.synthetic").joinpath("chat_template.jinja")
    (folder / "chat_template.jinja").write_text(template.read_text("utf-8"), encoding="utf-8")


def tokenizer_json(vocab_size: int) -> str:
    """Train and return tokenizer.json's text; the same for a vocabulary size, always."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_DIGITS), "isolated"),
            pre_tokenizers.Split(Regex(_UNSPACED), "isolated"),
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[
            AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS
        ],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    assert tokenizer.get_vocab_size() == vocab_size, tokenizer.get_vocab_size()
    return str(tokenizer.to_str(pretty=True))


def _special_tokens_map(config: AfmoeConfig) -> dict[str, str]:
    eos = (config.eos_token_id or (3,))[0]
    return {
        "bos_token": SPECIAL_TOKENS[0],
        "eos_token": SPECIAL_TOKENS[min(eos, len(SPECIAL_TOKENS) - 1)],
        "pad_token": "<|pad|>",
    }


def _tokenizer_config(config: AfmoeConfig) -> dict[str, object]:
    added = {
        str(number): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for number, token in enumerate(SPECIAL_TOKENS)
    }
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": added,
        **_special_tokens_map(config),
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position_embeddings,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
