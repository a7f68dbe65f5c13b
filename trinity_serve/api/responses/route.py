"""The route."""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter, Request, Response

from trinity_serve.api.answer import GenerationResponse
from trinity_serve.api.chat import ChatRun, prepare_chat
from trinity_serve.api.context import Api, JsonRoute
from trinity_serve.api.message.blocks import Blocks
from trinity_serve.api.message.parser import MessageParser
from trinity_serve.api.plan import RequestNames
from trinity_serve.api.responses.chat import CHAT_NAMES, chat_of
from trinity_serve.api.responses.reply import Fields, ResponsesReply
from trinity_serve.api.responses.schema import ResponsesBody
from trinity_serve.api.translation import renamed


def responses_router(api: Api) -> APIRouter:
    """Return the route, over `api`."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/responses")
    async def responses(body: ResponsesBody, request: Request) -> Response:
        """Answer a conversation in the form of OpenAI's Responses."""
        chat = chat_of(api, body)
        with renamed(CHAT_NAMES):
            run = await prepare_chat(api, chat, RequestNames.of(body, request), "resp")
        parser = run.new_parser() if run.new_parser else MessageParser(None, None)
        reply = ResponsesReply(_fields(body, run), Blocks(parser))
        # The last event of a stream tells the usage.
        return GenerationResponse(api, replace(run.plan, include_usage=True), reply)

    return router


def _fields(body: ResponsesBody, run: ChatRun) -> Fields:
    """Return what the reply repeats of the request."""
    told = body.model_dump(
        by_alias=True,
        exclude_none=True,
        include={"instructions", "max_output_tokens", "text", "reasoning"},
    )
    tools = [tool.model_dump() | {"strict": bool(tool.strict)} for tool in body.tools or ()]
    choice = body.tool_choice or "auto"
    params = run.plan.choices[0].request.params
    return {
        "id": run.head.reply_id,
        "object": "response",
        "created_at": run.head.created_s,
        "model": run.head.model,
        "instructions": None,
        "max_output_tokens": None,
        "text": {"format": {"type": "text"}},
        **told,
        "metadata": body.metadata or {},
        "temperature": params.temperature,
        "top_p": params.top_p,
        "tools": tools,
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "store": False,
        "truncation": "disabled",
    }
