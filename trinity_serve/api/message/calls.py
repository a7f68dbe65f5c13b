"""Tool calls in a message: content, with `<tool_call>` blocks in it, in either format."""

from __future__ import annotations

from abc import abstractmethod

from trinity_serve.api.message.generated import GeneratedParser
from trinity_serve.api.message.pieces import CallArguments, CallStart, Content
from trinity_serve.api.message.source import Reading

CALL, END_CALL = "<tool_call>", "</tool_call>"


class CallParser(GeneratedParser):
    """Finds calls. Whitespace around one is dropped; without `parallel`, all after the first are.

    A block that turns out not to be a call stays content, as it was written.
    """

    def __init__(self, *, parallel: bool) -> None:
        self._parallel = parallel
        self._space = ""
        """Before a possible call."""
        self._num_calls = 0
        super().__init__()

    @abstractmethod
    def read_call(self) -> Reading[bool]:
        """Read a block after its opening tag up to its closing tag.

        `start_call` and `add_arguments` take what is found. False, with nothing told: not a call.
        """

    def parse(self) -> Reading[None]:
        """Read content and blocks in turn."""
        source = self.source
        while (yield from source.until(CALL, self.add_content)):
            source.record()
            if (yield from self.read_call()):
                source.recorded()
                yield from self._close()
            else:
                self.add_content(CALL + source.recorded())
        if self._space and not self._num_calls:
            self.out.append(Content(self._space))

    def start_call(self, name: str) -> None:
        """Tell that a call of `name` begins."""
        self._space = ""
        if self._parallel or self._num_calls == 0:
            self.out.append(CallStart(self._num_calls, name))
        self._num_calls += 1

    def add_arguments(self, text: str) -> None:
        """Tell more of the arguments of the call that was started last."""
        index = self._num_calls - 1
        if text and (self._parallel or index == 0):
            self.out.append(CallArguments(index, text))

    def add_content(self, text: str) -> None:
        """Tell content; whitespace at its end waits for what follows."""
        if not text:
            return
        text = self._space + text
        kept = text.rstrip()
        self._space = text[len(kept) :]
        if kept:
            self.out.append(Content(kept))

    def _close(self) -> Reading[None]:
        """Read the closing tag. What stands before it is no part of the call, so it is content."""
        yield from self.source.space()
        yield from self.source.until(END_CALL, self.add_content)
        yield from self.source.space()
