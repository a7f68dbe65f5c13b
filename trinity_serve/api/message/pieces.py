"""What a message is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Thought before the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """Part of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A tool call begins; calls of one message count from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of a call's arguments: JSON text, or what the model wrote in its place."""

    index: int
    text: str


Piece: TypeAlias = Reasoning | Content | CallStart | CallArguments


class Parser(Protocol):
    """Text in, pieces out. Joined, the pieces do not depend on how the text was cut."""

    def push(self, text: str) -> list[Piece]:
        """Return what `text` adds."""
        ...

    def flush(self) -> list[Piece]:
        """Return what was held back: the text has ended."""
        ...
