"""A message's parser, for what a request asks to be told apart."""

from __future__ import annotations

from trinity_serve.api.message.pieces import Content, Parser, Piece


class MessageParser:
    """Reasoning first, then calls in what is not reasoning."""

    def __init__(self, reasoning: Parser | None, calls: Parser | None) -> None:
        self._reasoning = reasoning
        self._calls = calls

    def push(self, text: str) -> list[Piece]:
        """Return what `text` adds."""
        return self._call(self._reasoning.push(text) if self._reasoning else [Content(text)])

    def flush(self) -> list[Piece]:
        """Return what was held back: the text has ended."""
        pieces = self._call(self._reasoning.flush() if self._reasoning else [])
        return pieces + (self._calls.flush() if self._calls else [])

    def _call(self, pieces: list[Piece]) -> list[Piece]:
        if self._calls is None:
            return [piece for piece in pieces if not isinstance(piece, Content) or piece.text]
        found: list[Piece] = []
        for piece in pieces:
            found += self._calls.push(piece.text) if isinstance(piece, Content) else [piece]
        return found
