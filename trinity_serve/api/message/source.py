"""Text that comes in parts, for parsers written as generators.

A parser asks for what it needs and yields while that has not come. So what it does cannot depend
on how the text was cut, and its state is its place in the code.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Reading: TypeAlias = Generator[None, None, T]
"""Yields while text lacks; returns what was read."""
Emit: TypeAlias = Callable[[str], None]


class Source:
    """The text, and how far it is read."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._ended = False
        self._recorded: list[str] | None = None
        self._recorded_to = 0

    def push(self, text: str) -> None:
        """Append text."""
        self._keep_recorded()
        self._text = self._text[self._at :] + text
        self._at = self._recorded_to = 0

    def end(self) -> None:
        """Say that nothing comes any more."""
        self._ended = True

    def record(self) -> None:
        """Remember what is read from here on."""
        self._recorded, self._recorded_to = [], self._at

    def recorded(self) -> str:
        """Return what was read since `record` and forget it."""
        self._keep_recorded()
        text = "".join(self._recorded or ())
        self._recorded = None
        return text

    def peek(self) -> Reading[str]:
        """Return the next character without reading it; empty at the end."""
        while self._at >= len(self._text) and not self._ended:
            yield
        return self._text[self._at : self._at + 1]

    def take(self, num_chars: int = 1) -> str:
        """Read characters that are there."""
        text = self._text[self._at : self._at + num_chars]
        self._at += len(text)
        return text

    def rest(self) -> str:
        """Read all that is there."""
        return self.take(len(self._text) - self._at)

    def space(self) -> Reading[str]:
        """Read whitespace, up to what is none."""
        parts: list[str] = []
        while (yield from self.peek()).isspace():
            parts.append(self.take())
        return "".join(parts)

    def accept(self, marker: str) -> Reading[bool]:
        """Read `marker` if it comes next; return whether it did."""
        while True:
            there = self._text[self._at : self._at + len(marker)]
            if there == marker:
                self._at += len(marker)
                return True
            if self._ended or not marker.startswith(there):
                return False
            yield

    def until(self, marker: str, emit: Emit) -> Reading[bool]:
        """Emit the text before `marker` as it comes and read past it; False: the end came first."""
        while True:
            found = self._text.find(marker, self._at)
            if found >= 0:
                emit(self.take(found - self._at))
                self._at += len(marker)
                return True
            text = self._text[self._at :]
            emit(self.take(len(text) - (0 if self._ended else num_begun(text, marker))))
            if self._ended:
                return False
            yield

    def value(self, emit: Emit) -> Reading[bool]:
        """Emit one JSON value as it comes; False: it broke off.

        Only its extent is found: a string to its quote, brackets to their partner, anything else to
        a comma, bracket or space. `<` outside strings ends a value that was never finished.
        """
        extent = _ValueExtent()
        while True:
            text = self._text[self._at :]
            emit(self.take(extent.length_in(text)))
            if extent.ended or extent.broken:
                return not extent.broken
            if self._ended:
                return extent.complete_at_end
            yield

    def _keep_recorded(self) -> None:
        if self._recorded is not None:
            self._recorded.append(self._text[self._recorded_to : self._at])
            self._recorded_to = self._at


class _ValueExtent:
    """Where a JSON value ends in text that comes in parts."""

    def __init__(self) -> None:
        self._kind = ""
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.ended = False
        self.broken = False

    @property
    def complete_at_end(self) -> bool:
        """Whether the end of the text completes the value."""
        return self._kind == "scalar"

    def length_in(self, text: str) -> int:
        """Return how many of the characters belong to the value."""
        for position, char in enumerate(text):
            if self._in_string:
                self._step_in_string(char)
                if self.ended:
                    return position + 1
            elif not self._step(char):
                return position
            elif self.ended:
                return position + 1
        return len(text)

    def _step_in_string(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False
            self.ended = self._depth == 0

    def _step(self, char: str) -> bool:
        """Take a character outside strings; return whether it belongs to the value."""
        if char == "<":
            self.broken = not self.complete_at_end
            self.ended = True
            return False
        if self._kind == "scalar":
            self.ended = char in ",]}" or char.isspace()
            return not self.ended
        if char == '"':
            self._in_string = True
            self._kind = self._kind or "string"
        elif char in "{[":
            self._depth += 1
            self._kind = "nested"
        elif char in "}]":
            self._depth -= 1
            self.ended = self.broken = self._depth < 0
            self.ended = self._depth <= 0
            return self._depth >= 0
        elif not self._kind and not char.isspace():
            self._kind = "scalar"
        return True


def num_begun(text: str, marker: str) -> int:
    """Return how many of the marker's first characters the text ends with."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0
