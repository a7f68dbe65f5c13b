"""What parsers written as generators share: text in, pieces out."""

from __future__ import annotations

from abc import ABC, abstractmethod

from trinity_serve.api.message.pieces import Piece
from trinity_serve.api.message.source import Reading, Source


class GeneratedParser(ABC):
    """A parser whose `parse` reads the source and appends pieces to `out`."""

    def __init__(self) -> None:
        self.source = Source()
        self.out: list[Piece] = []
        self._reading = self.parse()

    @abstractmethod
    def parse(self) -> Reading[None]:
        """Read to the end of the text."""

    def push(self, text: str) -> list[Piece]:
        """Return what `text` adds."""
        self.source.push(text)
        return self._go_on()

    def flush(self) -> list[Piece]:
        """Return what was held back: the text has ended."""
        self.source.end()
        return self._go_on()

    def _go_on(self) -> list[Piece]:
        next(self._reading, None)
        pieces, self.out = self.out, []
        return pieces
