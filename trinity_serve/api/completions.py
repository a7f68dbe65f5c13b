"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from fastapi import APIRouter, Request, Response

from cluster.errors import InvalidRequestError
from trinity_serve.api.answer import GenerationResponse
from trinity_serve.api.choice import Delta
from trinity_serve.api.context import Api, JsonRoute
from trinity_serve.api.logprobs import CompletionLogprobs, prompt_logprobs
from trinity_serve.api.plan import (
    OutputSpec,
    RequestNames,
    check_body,
    make_head,
    make_plan,
    new_reply_id,
    truncated,
)
from trinity_serve.api.prompts import completion_prompts
from trinity_serve.api.reply import OpenAiStream, ReplyHead, Usage, WholeChoice, sse_event
from trinity_serve.api.routing import routing_fields
from trinity_serve.api.sampling import LogprobCounts
from trinity_serve.api.schema import CompletionBody
from trinity_serve.api.structured import constraint
from trinity_serve.engine.request import TokenLogprobs

_KIND = "text_completion"
_DEFAULT_MAX_TOKENS = 16


def completions_router(api: Api) -> APIRouter:
    """Return the route, over `api`."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Continue a prompt, or each of several."""
        return await _respond(api, body, RequestNames.of(body, request))

    return router


async def _respond(api: Api, body: CompletionBody, names: RequestNames) -> Response:
    check_body(api, body)
    _check_max_tokens(body)
    deadline = api.deadline()
    grammar = await constraint(body, api.service, api.limits, deadline)
    encoded = await completion_prompts(
        body.prompt,
        api.service,
        add_special_tokens=body.add_special_tokens is not False,
        limits=api.limits,
        deadline=deadline,
    )
    prompts = [truncated(body, prompt) for prompt in encoded]
    reply_id = new_reply_id("cmpl", names.request_id)
    plan = make_plan(
        api,
        body,
        prompts,
        OutputSpec(
            body.max_tokens,
            _DEFAULT_MAX_TOKENS,
            _logprob_counts(body),
            grammar,
            names.session_id,
            names.key_salt,
        ),
        reply_id=reply_id,
        deadline=deadline,
    )
    head = make_head(api, body, reply_id, with_logprobs=body.logprobs is not None)
    per_choice = [prompt for prompt in prompts for _ in range(body.n or 1)]
    form = CompletionForm(bool(body.echo), body.logprobs, body.prompt_logprobs is not None)
    return GenerationResponse(api, plan, CompletionReply(head, per_choice, form))


def _check_max_tokens(body: CompletionBody) -> None:
    if body.max_tokens == 0 and not body.echo and body.prompt_logprobs is None:
        message = "max_tokens = 0 is allowed with echo or prompt_logprobs only; else 1 or more."
        raise InvalidRequestError("max_tokens", message)


def _logprob_counts(body: CompletionBody) -> LogprobCounts:
    """With echo, `logprobs` counts for the prompt as well."""
    asked = [count for count in (body.prompt_logprobs, body.logprobs) if count is not None]
    if body.echo and body.logprobs is not None:
        return LogprobCounts(body.logprobs, max(asked))
    return LogprobCounts(body.logprobs, body.prompt_logprobs)


@dataclass(frozen=True, slots=True)
class CompletionForm:
    """What a reply shows besides the text that was made."""

    echo: bool = False
    num_logprobs: int | None = None
    prompt_logprobs: bool = False


class CompletionReply(OpenAiStream):
    """The `text_completion` form. `prompts` has one entry per choice."""

    def __init__(self, head: ReplyHead, prompts: Sequence[list[int]], form: CompletionForm) -> None:
        self._head = head
        self._prompts = prompts
        self._form = form
        self._sse_head = head.sse_head(_KIND)
        decode = head.tokenizer.decode
        self._echo = [decode(ids, skip_special_tokens=True) if form.echo else "" for ids in prompts]
        self._echoes_scores = form.echo and form.num_logprobs is not None

    def opening(self, usage: Usage) -> bytes:
        """Return the prompt as the first event of each choice, when it was asked for.

        With log-probabilities it comes with the choice's first delta, which has them.
        """
        if self._echoes_scores:
            return b""
        return b"".join([self._echo_event(index, None) for index in range(len(self._prompts))])

    def chunk(self, delta: Delta, usage: bytes, tokens: Sequence[Delta] | None = None) -> bytes:
        """Return the event of one delta."""
        head = self._head
        if not head.with_logprobs and not head.with_token_ids and not delta.routed_experts:
            return self._plain_chunk(delta, usage)
        echo = b""
        if delta.prompt_logprobs is not None and self._echoes_scores:
            echo = self._echo_event(delta.index, delta.prompt_logprobs)
        tokens = (delta,) if tokens is None else tokens
        has_token = any(token.token_id is not None for token in tokens)
        if not delta.text and not has_token and delta.finish is None:
            return echo
        choice = self._choice(delta.index, delta.text, tokens)
        choice["finish_reason"] = None if delta.finish is None else delta.finish.value
        choice["stop_reason"] = delta.stop_reason
        choice |= routing_fields(delta.routed_experts)
        return echo + self._sse_head + orjson.dumps(choice) + b"]" + usage + b"}\n\n"

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

    def _echo_event(self, index: int, scores: Sequence[TokenLogprobs] | None) -> bytes:
        if not self._echo[index] and not self._head.with_token_ids:
            return b""
        choice = self._choice(index, self._echo[index], (), scores)
        if self._head.with_token_ids:
            choice["prompt_token_ids"] = self._prompts[index]
        return sse_event(self._head.fields(_KIND) | {"choices": [choice]})

    def _whole_choice(self, index: int, choice: WholeChoice) -> dict[str, object]:
        scores = choice.prompt_logprobs
        fields = self._choice(
            index,
            self._echo[index] + choice.text,
            choice.tokens,
            scores if self._echoes_scores else None,
        )
        fields["finish_reason"] = None if choice.finish is None else choice.finish.value
        fields["stop_reason"] = choice.stop_reason
        fields |= routing_fields(choice.routed_experts)
        if self._head.with_token_ids:
            fields["prompt_token_ids"] = self._prompts[index]
        if self._form.prompt_logprobs and scores is not None:
            fields["prompt_logprobs"] = prompt_logprobs(self._prompts[index], scores, self._head)
        return fields

    def _choice(
        self,
        index: int,
        text: str,
        tokens: Sequence[Delta],
        scores: Sequence[TokenLogprobs] | None = None,
    ) -> dict[str, object]:
        logprobs = None
        if self._head.with_logprobs and (tokens or scores is not None):
            lists = CompletionLogprobs(self._head)
            if scores is not None:
                lists.add_prompt(self._prompts[index], scores, self._form.num_logprobs or 0)
            lists.add_output(tokens, len(self._echo[index]))
            logprobs = lists.fields()
        fields: dict[str, object] = {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": None,
            "stop_reason": None,
        }
        if self._head.with_token_ids:
            fields["token_ids"] = [delta.token_id for delta in tokens if delta.token_id is not None]
        return fields
