"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from cluster.deadline import Deadline
from cluster.errors import InvalidRequestError
from trinity_serve.api.answer import GenerationResponse
from trinity_serve.api.chat_reply import ChatReply, NewMessage
from trinity_serve.api.context import Api, JsonRoute
from trinity_serve.api.message.fields import MessageFields
from trinity_serve.api.message.parser import MessageParser
from trinity_serve.api.plan import (
    OutputSpec,
    RequestNames,
    check_body,
    make_head,
    make_plan,
    new_reply_id,
    truncated,
)
from trinity_serve.api.prompts import ChatPrompt, chat_prompt
from trinity_serve.api.reply import Plan, ReplyHead
from trinity_serve.api.sampling import LogprobCounts
from trinity_serve.api.schema import ChatBody
from trinity_serve.api.structured import constraint
from trinity_serve.api.thought import thought_limit
from trinity_serve.api.tools import ToolUse, tool_use


def chat_router(api: Api) -> APIRouter:
    """Return the route, over `api`."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/chat/completions")
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        """Answer a conversation."""
        return await _respond(api, body, RequestNames.of(body, request))

    return router


@dataclass(frozen=True, slots=True)
class ChatRun:
    """A conversation ready to be answered in any endpoint's form."""

    plan: Plan
    head: ReplyHead
    prompt_ids: list[int]
    new_parser: Callable[[], MessageParser] | None
    """Makes what takes a choice's text apart; None where all of it is content."""


async def prepare_chat(
    api: Api, body: ChatBody, names: RequestNames, reply_prefix: str = "chatcmpl"
) -> ChatRun:
    """Check `body` and render, encode and plan what it asks for. Raises what is wrong with it."""
    check_body(api, body)
    deadline = api.deadline()
    max_tokens = _max_tokens(body)
    logprobs = LogprobCounts(_num_logprobs(body), body.prompt_logprobs)
    tools = tool_use(body, api.limits)
    prompt = await rendered(api, body, tools, deadline)
    grammar = await constraint(
        body,
        api.service,
        api.limits,
        deadline,
        tools=tools,
        after_thought=prompt.opens_thought,
    )
    prompt_ids = truncated(body, prompt.ids)
    reply_id = new_reply_id(reply_prefix, names.request_id)
    spec = OutputSpec(
        max_tokens,
        None,
        logprobs,
        grammar,
        names.session_id,
        names.key_salt,
        thought_limit(body.thinking_token_budget, api.service, opened=prompt.opens_thought),
    )
    plan = make_plan(api, body, [prompt_ids], spec, reply_id=reply_id, deadline=deadline)
    head = make_head(api, body, reply_id, with_logprobs=logprobs.generated is not None)
    return ChatRun(plan, head, prompt_ids, _new_parser(api, tools, prompt))


async def rendered(api: Api, body: ChatBody, tools: ToolUse, deadline: Deadline) -> ChatPrompt:
    """Return the prompt that the model sees: tools are shown only where they may be called."""
    return await chat_prompt(
        body if tools.parses else body.model_copy(update={"tools": None}),
        api.service,
        add_special_tokens=bool(body.add_special_tokens),
        limits=api.limits,
        deadline=deadline,
    )


async def _respond(api: Api, body: ChatBody, names: RequestNames) -> Response:
    run = await prepare_chat(api, body, names)
    messages = _messages(run, include_reasoning=body.include_reasoning is not False)
    reply = ChatReply(run.head, run.prompt_ids, run.plan.num_choices, messages)
    return GenerationResponse(api, run.plan, reply)


def _messages(run: ChatRun, *, include_reasoning: bool) -> NewMessage | None:
    new_parser = run.new_parser
    if new_parser is None:
        return None
    return lambda: MessageFields(new_parser(), include_reasoning=include_reasoning)


def _new_parser(api: Api, tools: ToolUse, prompt: ChatPrompt) -> Callable[[], MessageParser] | None:
    formats = api.service.formats
    if not formats.reasoning and not tools.parses:
        return None
    schemas = {function.name: function.parameters for function in tools.functions}

    def new_parser() -> MessageParser:
        reasoning = formats.reasoning_parser(opened=prompt.opens_thought)
        calls = formats.call_parser(schemas, parallel=tools.parallel) if tools.parses else None
        return MessageParser(reasoning, calls)

    return new_parser


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
