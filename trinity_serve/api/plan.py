"""From a checked body and its prompts to the choices that the engine runs."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Request

from cluster.deadline import Deadline
from cluster.errors import InvalidRequestError
from trinity_serve.api.auth import caller_of
from trinity_serve.api.choice import Choice, Delta
from trinity_serve.api.context import Api
from trinity_serve.api.reply import Plan, ReplyHead
from trinity_serve.api.sampling import (
    LogprobCounts,
    check_num_scores,
    output_budget,
    sampling_params,
    text_options,
)
from trinity_serve.api.schema import EngineOptions, GenerationBody, StreamOptions
from trinity_serve.engine.request import FinishReason, GenerationRequest, ThoughtLimit

SESSION_ID_HEADER = "x-session-id"
_MAX_SESSION_ID_CHARS = 256


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """What the endpoints name differently: how much is made, what is told of it, what bounds it."""

    max_tokens: int | None
    default_max_tokens: int | None
    """None: as many as fit."""
    logprobs: LogprobCounts
    grammar: str = ""
    session_id: str = ""
    key_salt: bytes = b""
    """Keeps cached prefixes of the caller's API key apart."""
    thought: ThoughtLimit | None = None


@dataclass(frozen=True, slots=True)
class RequestNames:
    """What a client calls a request and the session it belongs to: in the body or by headers."""

    request_id: str
    session_id: str
    key_salt: bytes = b""

    @classmethod
    def of(cls, body: EngineOptions, request: Request) -> RequestNames:
        """Return the names of `request`."""
        return cls(
            body.request_id or request.state.request_id,
            body.session_id or request.headers.get(SESSION_ID_HEADER, "")[:_MAX_SESSION_ID_CHARS],
            b"" if (caller := caller_of(request.scope)) is None else caller.salt,
        )


def make_plan(
    api: Api,
    body: GenerationBody,
    prompts: Sequence[list[int]],
    spec: OutputSpec,
    *,
    reply_id: str,
    deadline: Deadline,
) -> Plan:
    """Return n choices for each prompt, in order.

    Every prompt is a request of its own to the engine and its choices count from 0: what is sampled
    for a prompt does not depend on what else stands in the list. Raises `InvalidRequestError`.
    """
    n = _checked_n(api, body, len(prompts))
    options = text_options(body, api.service, api.limits)
    seed = api.new_seed() if body.seed is None else body.seed
    choices: list[Choice] = []
    for position, prompt in enumerate(prompts):
        check_num_scores(spec.logprobs, len(prompt), api.limits)
        params = sampling_params(
            body,
            api.service,
            max_tokens=output_budget(
                spec.max_tokens, spec.default_max_tokens, len(prompt), api.service.max_model_len
            ),
            seed=seed,
            logprobs=spec.logprobs,
            grammar=spec.grammar,
            thought=spec.thought,
            limits=api.limits,
        )
        engine_id = reply_id if len(prompts) == 1 else f"{reply_id}.{position}"
        for choice in range(n):
            request = GenerationRequest(
                engine_id,
                choice,
                tuple(prompt),
                params,
                priority=body.priority or 0,
                cache_salt=spec.key_salt + (body.cache_salt or "").encode(),
                session_id=spec.session_id,
            )
            choices.append(Choice(position * n + choice, request, options))
    stream = StreamOptions() if body.stream_options is None else body.stream_options
    nothing_to_make = spec.max_tokens == 0 and spec.logprobs.prompt is None
    return Plan(
        reply_id=reply_id,
        choices=() if nothing_to_make else tuple(choices),
        num_choices=len(choices),
        prompt_tokens=sum(map(len, prompts)),
        deadline=deadline,
        stream=bool(body.stream),
        include_usage=bool(stream.include_usage),
        continuous_usage=bool(stream.include_usage and stream.continuous_usage_stats),
        stream_interval=body.stream_interval or 1,
        ready=tuple(Delta(choice.index, "", None, finish=FinishReason.LENGTH) for choice in choices)
        if nothing_to_make
        else (),
    )


def make_head(api: Api, body: GenerationBody, reply_id: str, *, with_logprobs: bool) -> ReplyHead:
    """Return the constant part of the reply to `body`."""
    return ReplyHead(
        reply_id=reply_id,
        created_s=int(api.wall_clock_s()),
        model=api.service.name,
        system_fingerprint=api.client.fingerprint,
        tokenizer=api.service.tokenizer,
        with_logprobs=with_logprobs,
        with_token_ids=bool(body.return_token_ids),
        tokens_as_ids=bool(body.return_tokens_as_token_ids),
    )


def check_body(api: Api, body: GenerationBody) -> None:
    """Check what both endpoints share before any work. Raises what the client did wrong."""
    api.check_model(body.model)
    api.fields.check(body.model_extra)
    if body.stream_options is not None:
        api.fields.check(body.stream_options.model_extra, "stream_options.")
        if not body.stream:
            message = "stream_options is allowed with stream = true only."
            raise InvalidRequestError("stream_options", message)
    if body.structured_outputs is not None:
        api.fields.check(body.structured_outputs.model_extra, "structured_outputs.")
    if body.stream and body.prompt_logprobs is not None:
        message = "prompt_logprobs is allowed without stream only; echo with logprobs streams them."
        raise InvalidRequestError("prompt_logprobs", message)


def new_reply_id(prefix: str, request_id: str) -> str:
    """Return an id that holds the client's and is unique, whatever ids clients send."""
    return f"{prefix}-{request_id}-{uuid.uuid4().hex[:8]}"


def truncated(body: GenerationBody, prompt: list[int]) -> list[int]:
    """Return the prompt's last `truncate_prompt_tokens` ids; all when that is not set."""
    return prompt if body.truncate_prompt_tokens is None else prompt[-body.truncate_prompt_tokens :]


def _checked_n(api: Api, body: GenerationBody, num_prompts: int) -> int:
    n, limits = body.n or 1, api.limits
    if n > limits.max_n:
        raise InvalidRequestError("n", f"n = {n} is above the limit; allowed: 1 to {limits.max_n}.")
    if n * num_prompts > limits.max_choices:
        message = (
            f"{num_prompts} prompts with n = {n} are {n * num_prompts} choices; "
            f"allowed: {limits.max_choices}."
        )
        raise InvalidRequestError("n", message)
    return n
