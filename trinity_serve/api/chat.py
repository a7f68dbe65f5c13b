"""POST /v1/chat/completions."""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Request, Response

from cluster.errors import InvalidRequestError
from trinity_serve.api.answer import GenerationResponse
from trinity_serve.api.choice import Delta
from trinity_serve.api.context import Api, JsonRoute
from trinity_serve.api.logprobs import chat_logprobs, prompt_logprobs
from trinity_serve.api.plan import check_body, make_head, make_plan, new_reply_id, truncated
from trinity_serve.api.prompts import chat_prompt
from trinity_serve.api.reply import ReplyHead, Usage, WholeChoice, sse_event
from trinity_serve.api.sampling import LogprobCounts
from trinity_serve.api.schema import ChatBody

_KIND = "chat.completion"
_CHUNK_KIND = "chat.completion.chunk"


def chat_router(api: Api) -> APIRouter:
    """Return the route, over `api`."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/chat/completions")
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        """Answer a conversation."""
        return await _respond(api, body, request.state.request_id)

    return router


async def _respond(api: Api, body: ChatBody, request_id: str) -> Response:
    check_body(api, body)
    deadline = api.deadline()
    max_tokens = _max_tokens(body)
    logprobs = LogprobCounts(_num_logprobs(body), body.prompt_logprobs)
    encoded = await chat_prompt(
        body,
        api.service,
        add_special_tokens=bool(body.add_special_tokens),
        limits=api.limits,
        deadline=deadline,
    )
    prompt = truncated(body, encoded)
    reply_id = new_reply_id("chatcmpl", request_id)
    plan = make_plan(
        api,
        body,
        [prompt],
        reply_id=reply_id,
        max_tokens=max_tokens,
        default_max_tokens=None,
        logprobs=logprobs,
        deadline=deadline,
    )
    head = make_head(api, body, reply_id, with_logprobs=logprobs.generated is not None)
    return GenerationResponse(api, plan, ChatReply(head, prompt, plan.num_choices))


def _max_tokens(body: ChatBody) -> int | None:
    newer = body.max_completion_tokens
    name = "max_tokens" if newer is None else "max_completion_tokens"
    value = body.max_tokens if newer is None else newer
    if value == 0:
        raise InvalidRequestError(name, f"{name} = 0 is not allowed: it must be 1 or more.")
    return value


def _num_logprobs(body: ChatBody) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        message = f"top_logprobs = {body.top_logprobs} needs logprobs = true."
        raise InvalidRequestError("top_logprobs", message)
    return None


class ChatReply:
    """The `chat.completion` form."""

    def __init__(self, head: ReplyHead, prompt: list[int], num_choices: int) -> None:
        self._head = head
        self._prompt = prompt
        self._num_choices = num_choices
        self._sse_head = head.sse_head(_CHUNK_KIND)

    def opening(self) -> bytes:
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

    def chunk(self, delta: Delta, usage: bytes) -> bytes:
        """Return the event of one delta."""
        head = self._head
        if not head.with_logprobs and not head.with_token_ids:
            return self._plain_chunk(delta, usage)
        if not delta.text and delta.token_id is None and delta.finish is None:
            return b""
        choice: dict[str, object] = {
            "index": delta.index,
            "delta": {"content": delta.text} if delta.text else {},
            "logprobs": self._logprobs([delta]),
            "finish_reason": None if delta.finish is None else delta.finish.value,
            "stop_reason": delta.stop_reason,
        }
        if head.with_token_ids:
            choice["token_ids"] = [] if delta.token_id is None else [delta.token_id]
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
        fields: dict[str, object] = {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": self._logprobs(choice.tokens),
            "finish_reason": None if choice.finish is None else choice.finish.value,
            "stop_reason": choice.stop_reason,
        }
        if self._head.with_token_ids:
            fields["token_ids"] = [delta.token_id for delta in choice.tokens]
        return fields

    def _logprobs(self, tokens: list[Delta]) -> dict[str, object] | None:
        return chat_logprobs(tokens, self._head) if self._head.with_logprobs else None
