"""The routes."""

from __future__ import annotations

from dataclasses import replace

from fastapi import APIRouter, Request, Response

from trinity_serve.api.answer import GenerationResponse
from trinity_serve.api.anthropic.chat import CHAT_NAMES, chat_of
from trinity_serve.api.anthropic.reply import MessagesReply
from trinity_serve.api.anthropic.schema import CountBody, MessagesBody
from trinity_serve.api.chat import prepare_chat, rendered
from trinity_serve.api.context import Api, JsonRoute
from trinity_serve.api.message.blocks import Blocks
from trinity_serve.api.message.parser import MessageParser
from trinity_serve.api.plan import RequestNames
from trinity_serve.api.tools import tool_use
from trinity_serve.api.translation import renamed


def anthropic_router(api: Api) -> APIRouter:
    """Return the routes, over `api`."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/messages")
    async def messages(body: MessagesBody, request: Request) -> Response:
        """Answer a conversation in the form of Anthropic's clients."""
        chat = chat_of(api, body)
        with renamed(CHAT_NAMES):
            run = await prepare_chat(api, chat, RequestNames.of(body, request), "msg")
        parser = run.new_parser() if run.new_parser else MessageParser(None, None)
        reply = MessagesReply(run.head.reply_id, run.head.model, Blocks(parser))
        # The last events of a stream tell the usage.
        return GenerationResponse(api, replace(run.plan, include_usage=True), reply)

    @router.post("/v1/messages/count_tokens")
    async def count_tokens(body: CountBody) -> dict[str, int]:
        """Return how many tokens a conversation has as a prompt."""
        api.check_model(body.model)
        chat = chat_of(api, body)
        with renamed(CHAT_NAMES):
            prompt = await rendered(api, chat, tool_use(chat, api.limits), api.deadline())
        return {"input_tokens": len(prompt.ids)}

    return router
