"""The form of /v1/messages: content blocks, and the events that build them up."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import orjson
from pydantic_core import from_json

from trinity_serve.api.choice import Delta
from trinity_serve.api.errors import anthropic_error
from trinity_serve.api.message.blocks import Block, BlockEvent, Blocks, BlockStart, BlockText
from trinity_serve.api.reply import Usage, WholeChoice, named_event
from trinity_serve.engine.request import FinishReason

Fields = dict[str, object]


class MessagesReply:
    """The `message` form."""

    last = b""

    def __init__(self, reply_id: str, model: str, blocks: Blocks) -> None:
        self._reply_id, self._model = reply_id, model
        self._blocks = blocks
        self._finish: FinishReason | None = None
        self._stop_reason: str | int | None = None

    def opening(self, usage: Usage) -> bytes:
        """Return the event with the empty message."""
        return named_event({"type": "message_start", "message": self._message([], usage)})

    def chunk(self, delta: Delta, usage: bytes, tokens: Sequence[Delta] | None = None) -> bytes:
        """Return the events of one delta."""
        self._finish, self._stop_reason = delta.finish, delta.stop_reason
        events = self._blocks.push(delta.text, num_tokens=0, ends=delta.finish is not None)
        return b"".join([_told(event) for event in events])

    def usage_chunk(self, usage: Usage) -> bytes:
        """Return the two events that every message ends with."""
        end: Fields = {"type": "message_delta", "delta": self._stop(), "usage": _usage(usage)}
        return named_event(end) + named_event({"type": "message_stop"})

    def whole(self, choices: list[WholeChoice], usage: Usage) -> bytes:
        """Return the answer that is not streamed."""
        choice = choices[0]
        self._finish, self._stop_reason = choice.finish, choice.stop_reason
        self._blocks.push(choice.text, num_tokens=0, ends=True)
        content = [_whole_block(block) for block in self._blocks.all]
        return orjson.dumps(self._message(content, usage) | self._stop())

    def failure(self, error: Exception) -> bytes:
        """Return the error; it is the last event."""
        return named_event(anthropic_error(error))

    def _message(self, content: list[Fields], usage: Usage) -> Fields:
        return {
            "id": self._reply_id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(usage),
        }

    def _stop(self) -> Fields:
        sequence = self._stop_reason if isinstance(self._stop_reason, str) else None
        reason = "end_turn"
        if self._finish is FinishReason.LENGTH:
            reason = "max_tokens"
        elif sequence is not None:
            reason = "stop_sequence"
        elif self._blocks.has_calls:
            reason = "tool_use"
        return {"stop_reason": reason, "stop_sequence": sequence}


def _usage(usage: Usage) -> Fields:
    """Input is counted without what a prefix cache had."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _told(event: BlockEvent) -> bytes:
    index = event.block.index
    if isinstance(event, BlockStart):
        block = _begun_block(event.block)
        return named_event({"type": "content_block_start", "index": index, "content_block": block})
    if isinstance(event, BlockText):
        delta = _delta(event.block, event.text)
        return named_event({"type": "content_block_delta", "index": index, "delta": delta})
    return named_event({"type": "content_block_stop", "index": index})


def _begun_block(block: Block) -> Fields:
    if block.kind == "call":
        return _tool_use(block, {})
    if block.kind == "thought":
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": ""}


def _delta(block: Block, text: str) -> Fields:
    if block.kind == "call":
        return {"type": "input_json_delta", "partial_json": text}
    if block.kind == "thought":
        return {"type": "thinking_delta", "thinking": text}
    return {"type": "text_delta", "text": text}


def _whole_block(block: Block) -> Fields:
    if block.kind == "call":
        return _tool_use(block, _input(block.text))
    if block.kind == "thought":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    return {"type": "text", "text": block.text}


def _tool_use(block: Block, arguments: Fields) -> Fields:
    call_id = f"toolu_{uuid.uuid4().hex[:24]}"
    return {"type": "tool_use", "id": call_id, "name": block.name, "input": arguments}


def _input(arguments: str) -> Fields:
    """Return arguments as the object that this form demands.

    Of those that were cut short, what came; what is no JSON is told under the key `text`.
    """
    try:
        value = from_json(arguments or "{}", allow_partial=True)
    except ValueError:
        return {"text": arguments}
    return value if isinstance(value, dict) else {"text": arguments}
