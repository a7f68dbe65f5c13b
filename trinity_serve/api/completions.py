"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
from fastapi import APIRouter, Request, Response

from cluster.errors import InvalidRequestError
from trinity_serve.api.answer import GenerationResponse
from trinity_serve.api.choice import Delta
from trinity_serve.api.context import Api, JsonRoute
from trinity_serve.api.logprobs import completion_logprobs
from trinity_serve.api.plan import check_body, make_head, make_plan, new_reply_id, truncated
from trinity_serve.api.prompts import completion_prompts
from trinity_serve.api.reply import ReplyHead, Usage, WholeChoice, sse_event
from trinity_serve.api.schema import CompletionBody

_KIND = "text_completion"
_DEFAULT_MAX_TOKENS = 16


def completions_router(api: Api) -> APIRouter:
    """Return the route, over `api`."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Continue a prompt, or each of several."""
        return await _respond(api, body, request.state.request_id)

    return router


async def _respond(api: Api, body: CompletionBody, request_id: str) -> Response:
    check_body(api, body)
    _check_echo(body)
    deadline = api.deadline()
    encoded = await completion_prompts(
        body.prompt,
        api.service,
        add_special_tokens=body.add_special_tokens is not False,
        limits=api.limits,
        deadline=deadline,
    )
    prompts = [truncated(body, prompt) for prompt in encoded]
    reply_id = new_reply_id("cmpl", request_id)
    plan = make_plan(
        api,
        body,
        prompts,
        reply_id=reply_id,
        max_tokens=body.max_tokens,
        default_max_tokens=_DEFAULT_MAX_TOKENS,
        num_logprobs=body.logprobs,
        deadline=deadline,
    )
    head = make_head(api, body, reply_id, with_logprobs=body.logprobs is not None)
    per_choice = [prompt for prompt in prompts for _ in range(body.n or 1)]
    return GenerationResponse(api, plan, CompletionReply(head, per_choice, echo=bool(body.echo)))


def _check_echo(body: CompletionBody) -> None:
    if body.echo and body.logprobs is not None:
        message = (
            "echo with logprobs is not supported: log-probabilities of the prompt are not built."
        )
        raise InvalidRequestError("echo", message)
    if body.max_tokens == 0 and not body.echo:
        message = "max_tokens = 0 is allowed with echo only; else 1 or more."
        raise InvalidRequestError("max_tokens", message)


class CompletionReply:
    """The `text_completion` form. `prompts` has one entry per choice."""

    def __init__(self, head: ReplyHead, prompts: Sequence[list[int]], *, echo: bool) -> None:
        self._head = head
        self._prompts = prompts
        self._sse_head = head.sse_head(_KIND)
        decode = head.tokenizer.decode
        self._echo = [decode(ids, skip_special_tokens=True) if echo else "" for ids in prompts]

    def opening(self) -> bytes:
        """Return the prompt as the first event of each choice, when it was asked for."""
        events = []
        for index, (text, ids) in enumerate(zip(self._echo, self._prompts, strict=True)):
            if text or self._head.with_token_ids:
                choice = self._choice(index, text, (), None, None)
                if self._head.with_token_ids:
                    choice["prompt_token_ids"] = ids
                events.append(sse_event(self._head.fields(_KIND) | {"choices": [choice]}))
        return b"".join(events)

    def chunk(self, delta: Delta, usage: bytes) -> bytes:
        """Return the event of one delta."""
        head = self._head
        if not head.with_logprobs and not head.with_token_ids:
            return self._plain_chunk(delta, usage)
        if not delta.text and delta.token_id is None and delta.finish is None:
            return b""
        finish = None if delta.finish is None else delta.finish.value
        choice = self._choice(delta.index, delta.text, (delta,), finish, delta.stop_reason)
        return self._sse_head + orjson.dumps(choice) + b"]" + usage + b"}\n\n"

    def usage_chunk(self, usage: Usage) -> bytes:
        """Return the last event but one."""
        return sse_event(self._head.fields(_KIND) | {"choices": [], "usage": usage.fields()})

    def whole(self, choices: list[WholeChoice], usage: Usage) -> bytes:
        """Return the answer that is not streamed."""
        made = [self._whole_choice(index, choice) for index, choice in enumerate(choices)]
        fields = self._head.fields(_KIND) | {"choices": made, "usage": usage.fields()}
        return orjson.dumps(fields)

    def _plain_chunk(self, delta: Delta, usage: bytes) -> bytes:
        if not delta.text and delta.finish is None:
            return b""
        end = b',"logprobs":null,"finish_reason":null,"stop_reason":null}]'
        if delta.finish is not None:
            end = b',"logprobs":null,"finish_reason":"%b","stop_reason":%b}]' % (
                delta.finish.value.encode(),
                orjson.dumps(delta.stop_reason),
            )
        text = orjson.dumps(delta.text)
        return b'%b{"index":%d,"text":%b%b%b}\n\n' % (self._sse_head, delta.index, text, end, usage)

    def _whole_choice(self, index: int, choice: WholeChoice) -> dict[str, object]:
        finish = None if choice.finish is None else choice.finish.value
        text = self._echo[index] + choice.text
        fields = self._choice(index, text, choice.tokens, finish, choice.stop_reason)
        if self._head.with_token_ids:
            fields["prompt_token_ids"] = self._prompts[index]
        return fields

    def _choice(
        self,
        index: int,
        text: str,
        tokens: Sequence[Delta],
        finish: str | None,
        stop_reason: str | int | None,
    ) -> dict[str, object]:
        logprobs = None
        if self._head.with_logprobs and tokens:
            logprobs = completion_logprobs(tokens, self._head, len(self._echo[index]))
        fields: dict[str, object] = {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish,
            "stop_reason": stop_reason,
        }
        if self._head.with_token_ids:
            fields["token_ids"] = [delta.token_id for delta in tokens if delta.token_id is not None]
        return fields
