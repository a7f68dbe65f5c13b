"""A message's pieces in the form of /v1/chat/completions."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable

from trinity_serve.api.message.parser import MessageParser
from trinity_serve.api.message.pieces import CallArguments, CallStart, Content, Piece, Reasoning

Fields = dict[str, object]


def new_call_id() -> str:
    """Return an id for a tool call; clients send it back with the result."""
    return f"call_{uuid.uuid4().hex[:24]}"


class MessageFields:
    """One choice's message on its way to the client. Counts its calls."""

    def __init__(
        self,
        parser: MessageParser,
        *,
        include_reasoning: bool,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        self._parser = parser
        self._include_reasoning = include_reasoning
        self._new_id = new_id
        self.has_calls = False

    def delta(self, text: str, *, ends: bool) -> Fields:
        """Return what `text`, the last if `ends`, adds to the message."""
        pieces = self._parser.push(text)
        return self._fields(pieces + self._parser.flush() if ends else pieces)

    def whole(self, text: str) -> Fields:
        """Return the message that is all of `text`."""
        fields: Fields = {"role": "assistant", "content": None, "refusal": None}
        fields |= self.delta(text, ends=True)
        for call in self._calls_of(fields):
            call.pop("index")
        if fields["content"] is None and not self.has_calls:
            fields["content"] = ""
        return fields

    @staticmethod
    def _calls_of(fields: Fields) -> list[Fields]:
        calls = fields.get("tool_calls", [])
        assert isinstance(calls, list)
        return calls

    def _fields(self, pieces: list[Piece]) -> Fields:
        fields: Fields = {}
        thought = "".join(_texts(pieces, Reasoning)) if self._include_reasoning else ""
        if thought:
            # vLLM's name, and the one that came before it.
            fields["reasoning"] = fields["reasoning_content"] = thought
        content = "".join(_texts(pieces, Content))
        if content:
            fields["content"] = content
        calls = self._calls(pieces)
        if calls:
            fields["tool_calls"] = calls
        return fields

    def _calls(self, pieces: list[Piece]) -> list[Fields]:
        calls: dict[int, Fields] = {}
        arguments: dict[int, str] = {}
        for piece in pieces:
            if isinstance(piece, CallStart):
                self.has_calls = True
                calls[piece.index] = {
                    "index": piece.index,
                    "id": self._new_id(),
                    "type": "function",
                    "function": {"name": piece.name},
                }
                arguments[piece.index] = ""
            elif isinstance(piece, CallArguments):
                calls.setdefault(piece.index, {"index": piece.index, "function": {}})
                arguments[piece.index] = arguments.get(piece.index, "") + piece.text
        for index, text in arguments.items():
            function = calls[index]["function"]
            assert isinstance(function, dict)
            function["arguments"] = text
        return list(calls.values())


def _texts(pieces: list[Piece], kind: type[Reasoning] | type[Content]) -> Iterable[str]:
    return (piece.text for piece in pieces if isinstance(piece, kind))
