"""Text to ids and ids to bytes, over a checkpoint's own `tokenizer.json`.

Knows nothing of requests or models. Only byte-level decoders are served (all Trinity checkpoints
have one): there a token is a fixed run of bytes, so decoding is joining, in linear time.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer

from cluster.errors import ConfigError

TOKENIZER_FILE = "tokenizer.json"
MARKERS = frozenset({"<think>", "</think>", "<tool_call>", "</tool_call>"})
"""Part of a message's text, also where a tokenizer calls them special: parsers look for them."""


class TextTokenizer:
    """A loaded tokenizer. Immutable and safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, source: str) -> None:
        _require_byte_level(tokenizer, source)
        self._tokenizer = tokenizer
        self._bytes = _token_bytes(tokenizer)
        self._special = frozenset(
            token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special and token.content not in MARKERS
        )

    @classmethod
    def from_folder(cls, folder: Path) -> TextTokenizer:
        """Read `tokenizer.json` of a checkpoint. Raises `ConfigError` naming file and problem."""
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise ConfigError(
                str(folder), TOKENIZER_FILE, "the file is missing", "a tokenizer.json"
            )
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every kind of damage
            raise ConfigError(
                str(path), "(file)", str(error), "a file of the tokenizers library"
            ) from error
        return cls(tokenizer, str(path))

    @property
    def num_ids(self) -> int:
        """One more than the largest known id."""
        return len(self._bytes)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of `text`. Blocks; about a second for each megabyte.

        `text` must be free of lone surrogates (the JSON parser at the border refuses them).
        """
        # The batch call lets go of the interpreter lock, the single one does not.
        batch = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(batch[0].ids)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token; none for an id without a token (vocabulary padding)."""
        return self._bytes[token_id] if 0 <= token_id < len(self._bytes) else b""

    def is_special(self, token_id: int) -> bool:
        """Return whether the token is a control token, hidden from text by default."""
        return token_id in self._special

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Return the text of all ids at once; broken UTF-8 becomes U+FFFD, unknown ids nothing."""
        special = self._special if skip_special_tokens else frozenset()
        parts = [self.token_bytes(token_id) for token_id in token_ids if token_id not in special]
        return b"".join(parts).decode("utf-8", errors="replace")

    def token_text(self, token_id: int) -> str:
        r"""Return one token as OpenAI's logprobs write it: its text, or ``bytes:\xe2\x80``."""
        raw = self.token_bytes(token_id)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _require_byte_level(tokenizer: Tokenizer, source: str) -> None:
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    kinds = {step.get("type") for step in decoder.get("decoders", [decoder])}
    if kinds != {"ByteLevel"}:
        found = ", ".join(sorted(str(kind) for kind in kinds))
        raise ConfigError(source, "decoder", f"{found} is not supported", "ByteLevel")


def _token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    char_to_byte = _byte_level_alphabet()
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocab.values(), default=-1) + 1)
    for token, token_id in vocab.items():
        try:
            table[token_id] = bytes([char_to_byte[char] for char in token])
        except KeyError:  # an added token written in plain text, e.g. with a space
            table[token_id] = token.encode("utf-8")
    return table


def _byte_level_alphabet() -> dict[str, int]:
    """Return the character that byte-level BPE writes for each byte, inverted.

    Printable bytes stand for themselves; the others are moved up from U+0100 in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    hidden = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(0x100 + offset): byte for offset, byte in enumerate(hidden)})
    return alphabet
