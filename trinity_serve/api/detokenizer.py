"""Ids to text, one token at a time, without ever splitting a character."""

from __future__ import annotations

import codecs

from trinity_serve.api.tokenizer import TextTokenizer


class IncrementalDetokenizer:
    """The text of one choice as it grows.

    Bytes of a character that is not complete are held back until it is, or until `flush`. Work per
    token does not depend on how many came before. The joined parts equal the whole decode.
    """

    def __init__(self, tokenizer: TextTokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Return the text that this token completes; empty while a character is under way."""
        if self._skip_special_tokens and self._tokenizer.is_special(token_id):
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """Return what is held back: U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b"", final=True)
