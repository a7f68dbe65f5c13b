"""The form of /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import orjson

from trinity_serve.api.choice import Delta
from trinity_serve.api.logprobs import chat_logprobs, prompt_logprobs
from trinity_serve.api.message.fields import MessageFields
from trinity_serve.api.reply import OpenAiStream, ReplyHead, Usage, WholeChoice, sse_event
from trinity_serve.api.routing import routing_fields
from trinity_serve.engine.request import FinishReason

_KIND = "chat.completion"
_CHUNK_KIND = "chat.completion.chunk"
NewMessage: TypeAlias = Callable[[], MessageFields]


class ChatReply(OpenAiStream):
    """The `chat.completion` form."""

    def __init__(
        self, head: ReplyHead, prompt: list[int], num_choices: int, messages: NewMessage | None
    ) -> None:
        self._head = head
        self._prompt = prompt
        self._num_choices = num_choices
        self._messages = [messages() for _ in range(num_choices)] if messages else None
        self._sse_head = head.sse_head(_CHUNK_KIND)

    def opening(self, usage: Usage) -> bytes:
        """Return the role, as the first event of each choice."""
        events = []
        for index in range(self._num_choices):
            delta = {"role": "assistant", "content": ""}
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            fields = self._head.fields(_CHUNK_KIND) | {"choices": [choice]}
            if self._head.with_token_ids:
                fields["prompt_token_ids"] = self._prompt
            events.append(sse_event(fields))
        return b"".join(events)

    def chunk(self, delta: Delta, usage: bytes, tokens: Sequence[Delta] | None = None) -> bytes:
        """Return the event of one delta."""
        head = self._head
        with_tokens = head.with_logprobs or head.with_token_ids
        if self._messages is None and not with_tokens and not delta.routed_experts:
            return self._plain_chunk(delta, usage)
        tokens = (delta,) if tokens is None else tokens
        fields = self._message_delta(delta)
        shows_token = with_tokens and any(token.token_id is not None for token in tokens)
        if not fields and not shows_token and delta.finish is None:
            return b""
        choice: dict[str, object] = {
            "index": delta.index,
            "delta": fields,
            "logprobs": self._logprobs(tokens),
            "finish_reason": self._finish_reason(delta.index, delta.finish),
            "stop_reason": delta.stop_reason,
        }
        choice |= routing_fields(delta.routed_experts)
        if head.with_token_ids:
            choice["token_ids"] = [d.token_id for d in tokens if d.token_id is not None]
        return self._sse_head + orjson.dumps(choice) + b"]" + usage + b"}\n\n"

    def usage_chunk(self, usage: Usage) -> bytes:
        """Return the last event but one."""
        return sse_event(self._head.fields(_CHUNK_KIND) | {"choices": [], "usage": usage.fields()})

    def whole(self, choices: list[WholeChoice], usage: Usage) -> bytes:
        """Return the answer that is not streamed."""
        made = [self._whole_choice(index, choice) for index, choice in enumerate(choices)]
        fields = self._head.fields(_KIND) | {"choices": made, "usage": usage.fields()}
        if self._head.with_token_ids:
            fields["prompt_token_ids"] = self._prompt
        scores = choices[0].prompt_logprobs
        if scores is not None:
            fields["prompt_logprobs"] = prompt_logprobs(self._prompt, scores, self._head)
        return orjson.dumps(fields)

    def _message_delta(self, delta: Delta) -> dict[str, object]:
        if self._messages is not None:
            return self._messages[delta.index].delta(delta.text, ends=delta.finish is not None)
        return {"content": delta.text} if delta.text else {}

    def _finish_reason(self, index: int, finish: FinishReason | None) -> str | None:
        if finish is FinishReason.STOP and self._messages and self._messages[index].has_calls:
            return "tool_calls"
        return None if finish is None else finish.value

    def _plain_chunk(self, delta: Delta, usage: bytes) -> bytes:
        if not delta.text and delta.finish is None:
            return b""
        content = b'"content":' + orjson.dumps(delta.text) if delta.text else b""
        end = b'},"logprobs":null,"finish_reason":null}]'
        if delta.finish is not None:
            end = b'},"logprobs":null,"finish_reason":"%b","stop_reason":%b}]' % (
                delta.finish.value.encode(),
                orjson.dumps(delta.stop_reason),
            )
        return b'%b{"index":%d,"delta":{%b%b%b}\n\n' % (
            self._sse_head,
            delta.index,
            content,
            end,
            usage,
        )

    def _whole_choice(self, index: int, choice: WholeChoice) -> dict[str, object]:
        message: dict[str, object] = {
            "role": "assistant",
            "content": choice.text,
            "refusal": None,
        }
        if self._messages is not None:
            message = self._messages[index].whole(choice.text)
        fields: dict[str, object] = {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(choice.tokens),
            "finish_reason": self._finish_reason(index, choice.finish),
            "stop_reason": choice.stop_reason,
        }
        fields |= routing_fields(choice.routed_experts)
        if self._head.with_token_ids:
            fields["token_ids"] = [delta.token_id for delta in choice.tokens]
        return fields

    def _logprobs(self, tokens: Sequence[Delta]) -> dict[str, object] | None:
        return chat_logprobs(tokens, self._head) if self._head.with_logprobs else None
