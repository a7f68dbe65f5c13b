"""A message as blocks in the order they were made: thought, text, calls.

The form that `/v1/responses` and `/v1/messages` share; how a block is told is theirs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from trinity_serve.api.message.parser import MessageParser
from trinity_serve.api.message.pieces import CallArguments, CallStart, Piece, Reasoning

Kind = Literal["thought", "text", "call"]


@dataclass(slots=True)
class Block:
    """One block; `text` is what it holds so far, of a call its arguments."""

    index: int
    kind: Kind
    name: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class BlockStart:
    """A block begins; the one before it has ended."""

    block: Block


@dataclass(frozen=True, slots=True)
class BlockText:
    """A block grows by `text`."""

    block: Block
    text: str


@dataclass(frozen=True, slots=True)
class BlockEnd:
    """A block is whole."""

    block: Block


BlockEvent: TypeAlias = BlockStart | BlockText | BlockEnd


class Blocks:
    """Cuts one choice's text into blocks and counts the tokens of its thought."""

    def __init__(self, parser: MessageParser) -> None:
        self._parser = parser
        self._num_tokens = 0
        self._answer_began_at: int | None = None
        self.all: list[Block] = []

    @property
    def has_calls(self) -> bool:
        """Whether a call has begun."""
        return any(block.kind == "call" for block in self.all)

    @property
    def num_thought_tokens(self) -> int:
        """Tokens up to the first block that is no thought; 0 without thought."""
        if not self.all or self.all[0].kind != "thought":
            return 0
        return self._num_tokens if self._answer_began_at is None else self._answer_began_at

    def push(self, text: str, *, num_tokens: int, ends: bool) -> list[BlockEvent]:
        """Return what `text`, made of `num_tokens` and the last if `ends`, adds."""
        pieces = self._parser.push(text)
        if ends:
            pieces = pieces + self._parser.flush()
        events = [event for piece in pieces for event in self._take(piece)]
        self._num_tokens += num_tokens
        if ends and self.all:
            events.append(BlockEnd(self.all[-1]))
        return events

    def _take(self, piece: Piece) -> Iterable[BlockEvent]:
        if isinstance(piece, CallStart):
            yield from self._start("call", piece.name)
            return
        kind: Kind = "text"
        if isinstance(piece, CallArguments | Reasoning):
            kind = "call" if isinstance(piece, CallArguments) else "thought"
        if not self.all or self.all[-1].kind != kind:
            yield from self._start(kind)
        block = self.all[-1]
        block.text += piece.text
        yield BlockText(block, piece.text)

    def _start(self, kind: Kind, name: str = "") -> Iterable[BlockEvent]:
        if self.all:
            yield BlockEnd(self.all[-1])
        if kind != "thought" and self._answer_began_at is None:
            self._answer_began_at = self._num_tokens
        self.all.append(Block(len(self.all), kind, name))
        yield BlockStart(self.all[-1])
