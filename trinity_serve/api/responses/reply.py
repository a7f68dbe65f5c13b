"""The form of /v1/responses: items, and the events that build them up."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from trinity_serve.api.choice import Delta
from trinity_serve.api.errors import error_object
from trinity_serve.api.message.blocks import (
    Block,
    BlockEnd,
    BlockEvent,
    Blocks,
    BlockStart,
    BlockText,
    Kind,
)
from trinity_serve.api.message.fields import new_call_id
from trinity_serve.api.reply import Usage, WholeChoice, named_event
from trinity_serve.engine.request import FinishReason

Fields = dict[str, object]
_ID_PREFIXES: dict[Kind, str] = {"thought": "rs", "text": "msg", "call": "fc"}


@dataclass(frozen=True, slots=True)
class _Ids:
    item_id: str
    call_id: str


class ResponsesReply:
    """The `response` form. `fields` are those that do not change while it is made."""

    last = b""

    def __init__(self, fields: Fields, blocks: Blocks) -> None:
        self._fields = fields
        self._blocks = blocks
        self._ids: dict[int, _Ids] = {}
        self._num_events = 0
        self._finish: FinishReason | None = None

    def opening(self, usage: Usage) -> bytes:
        """Return the two events that every response begins with."""
        response = self._response("in_progress", [])
        return b"".join(
            [
                self._event("response.created", {"response": response}),
                self._event("response.in_progress", {"response": response}),
            ]
        )

    def chunk(self, delta: Delta, usage: bytes, tokens: Sequence[Delta] | None = None) -> bytes:
        """Return the events of one delta."""
        self._finish = delta.finish
        return b"".join([self._of(event) for event in self._push(delta, tokens or (delta,))])

    def usage_chunk(self, usage: Usage) -> bytes:
        """Return the last event, which has all of the response."""
        response = self._ended(usage)
        return self._event(f"response.{response['status']}", {"response": response})

    def whole(self, choices: list[WholeChoice], usage: Usage) -> bytes:
        """Return the answer that is not streamed."""
        self._finish = choices[0].finish
        for token in choices[0].tokens:
            self._blocks.push(token.text, num_tokens=1, ends=False)
        self._blocks.push(_rest(choices[0]), num_tokens=0, ends=True)
        return orjson.dumps(self._ended(usage))

    def failure(self, error: Exception) -> bytes:
        """Return the error, and the response as far as it came."""
        told = error_object(error)["error"]
        assert isinstance(told, dict)
        code, message = told["code"], told["message"]
        response = self._response("failed", self._items("incomplete"))
        response["error"] = {"code": "server_error", "message": message}
        return self._event(
            "error", {"code": code, "message": message, "param": told["param"]}
        ) + self._event("response.failed", {"response": response})

    def _push(self, delta: Delta, tokens: Sequence[Delta]) -> list[BlockEvent]:
        num_tokens = sum(token.token_id is not None for token in tokens)
        return self._blocks.push(delta.text, num_tokens=num_tokens, ends=delta.finish is not None)

    def _of(self, event: BlockEvent) -> bytes:
        if isinstance(event, BlockStart):
            return self._started(event.block)
        if isinstance(event, BlockText):
            return self._grown(event.block, event.text)
        return self._done(event)

    def _started(self, block: Block) -> bytes:
        item = self._item(block, "in_progress")
        events = self._event(
            "response.output_item.added", {"output_index": block.index, "item": item}
        )
        if block.kind == "call":
            return events
        return events + self._part_event("response.content_part.added", block, part=_part(block))

    def _grown(self, block: Block, text: str) -> bytes:
        if block.kind == "call":
            return self._item_event("response.function_call_arguments.delta", block, delta=text)
        if block.kind == "thought":
            return self._part_event("response.reasoning_text.delta", block, delta=text)
        return self._part_event("response.output_text.delta", block, delta=text, logprobs=[])

    def _done(self, event: BlockEnd) -> bytes:
        block = event.block
        status = self._status_of(block)
        item = {"output_index": block.index, "item": self._item(block, status)}
        if block.kind == "call":
            name = "response.function_call_arguments.done"
            ends = self._item_event(name, block, name=block.name, arguments=block.text)
            return ends + self._event("response.output_item.done", item)
        if block.kind == "thought":
            ends = self._part_event("response.reasoning_text.done", block, text=block.text)
        else:
            name = "response.output_text.done"
            ends = self._part_event(name, block, text=block.text, logprobs=[])
        ends += self._part_event("response.content_part.done", block, part=_part(block))
        return ends + self._event("response.output_item.done", item)

    def _status_of(self, block: Block) -> str:
        """The last block of an output that was cut short is incomplete."""
        is_last = block.index == len(self._blocks.all) - 1
        return "incomplete" if is_last and self._finish is FinishReason.LENGTH else "completed"

    def _item(self, block: Block, status: str) -> Fields:
        ids = self._ids_of(block)
        ready = status != "in_progress"
        item: Fields = {"id": ids.item_id, "status": status}
        if block.kind == "call":
            arguments = block.text if ready else ""
            call = {"call_id": ids.call_id, "name": block.name, "arguments": arguments}
            return item | {"type": "function_call"} | call
        content = [_part(block)] if ready else []
        if block.kind == "thought":
            return item | {"type": "reasoning", "summary": [], "content": content}
        return item | {"type": "message", "role": "assistant", "content": content}

    def _items(self, last_status: str | None = None) -> list[Fields]:
        blocks = self._blocks.all
        items = [self._item(block, self._status_of(block)) for block in blocks]
        if items and last_status is not None:
            items[-1]["status"] = last_status
        return items

    def _ids_of(self, block: Block) -> _Ids:
        if block.index not in self._ids:
            item_id = f"{_ID_PREFIXES[block.kind]}_{uuid.uuid4().hex}"
            self._ids[block.index] = _Ids(item_id, new_call_id() if block.kind == "call" else "")
        return self._ids[block.index]

    def _ended(self, usage: Usage) -> Fields:
        cut = self._finish is FinishReason.LENGTH
        response = self._response("incomplete" if cut else "completed", self._items())
        response["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
        response["usage"] = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._blocks.num_thought_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        return response

    def _response(self, status: str, output: list[Fields]) -> Fields:
        nothing = {"error": None, "incomplete_details": None, "usage": None}
        return self._fields | nothing | {"status": status, "output": output}

    def _event(self, kind: str, fields: Fields) -> bytes:
        number, self._num_events = self._num_events, self._num_events + 1
        return named_event({"type": kind, "sequence_number": number, **fields})

    def _item_event(self, kind: str, block: Block, **fields: object) -> bytes:
        place: Fields = {"item_id": self._ids_of(block).item_id, "output_index": block.index}
        return self._event(kind, place | fields)

    def _part_event(self, kind: str, block: Block, **fields: object) -> bytes:
        return self._item_event(kind, block, content_index=0, **fields)


def _rest(choice: WholeChoice) -> str:
    """Return the text after the last token's own: what was held back to the end."""
    return choice.text[sum(len(token.text) for token in choice.tokens) :]


def _part(block: Block) -> Fields:
    """A block's one part; empty where it is told of before its text."""
    if block.kind == "thought":
        return {"type": "reasoning_text", "text": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": []}
