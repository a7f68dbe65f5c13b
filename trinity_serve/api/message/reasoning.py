"""Thought between `<think>` and `</think>` at the beginning of a message.

The line breaks that the chat template writes around both are taken away, so that a message sent
back as history renders to the same tokens. What looks like a tool call inside is thought.
"""

from __future__ import annotations

from trinity_serve.api.message.generated import GeneratedParser
from trinity_serve.api.message.pieces import Content, Reasoning
from trinity_serve.api.message.source import Reading

THINK, END_THINK = "<think>", "</think>"
END_THOUGHT = f"\n{END_THINK}\n\n"
"""The end of a block as chat templates write it."""


class ReasoningParser(GeneratedParser):
    """Splits a message. `opened`: the prompt ends inside a block, as with a generation prompt."""

    def __init__(self, *, opened: bool) -> None:
        self._opened = opened
        self._held = ""
        """A line break that may stand before `</think>`."""
        super().__init__()

    def parse(self) -> Reading[None]:
        """Read the block, if there is one, and pass on what follows."""
        source = self.source
        space = ""
        if not self._opened:
            space = yield from source.space()
            self._opened = yield from source.accept(THINK)
        if self._opened:
            yield from source.accept("\n")
            ended = yield from source.until(END_THINK, self._think)
            if not ended and self._held:
                self.out.append(Reasoning(self._held))
            while (yield from source.accept("\n")):
                pass
        elif space:
            self.out.append(Content(space))
        while (yield from source.peek()):
            self.out.append(Content(source.rest()))

    def _think(self, text: str) -> None:
        text = self._held + text
        self._held = "\n" if text.endswith("\n") else ""
        text = text.removesuffix("\n")
        if text:
            self.out.append(Reasoning(text))
