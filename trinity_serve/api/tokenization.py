"""POST /tokenize and /detokenize, GET /tokenizer_info."""

from __future__ import annotations

from fastapi import APIRouter

from cluster.deadline import Deadline
from cluster.errors import InvalidRequestError
from trinity_serve.api.context import Api, JsonRoute
from trinity_serve.api.prompts import chat_prompt
from trinity_serve.api.schema import ChatOptions, DetokenizeBody, TokenizeBody


def tokenization_router(api: Api) -> APIRouter:
    """Return the routes, over `api`."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> dict[str, object]:
        """Return the ids that a prompt or a conversation has."""
        api.check_model(body.model)
        api.fields.check(body.model_extra)
        ids = await _ids(api, body)
        reply: dict[str, object] = {
            "count": len(ids),
            "max_model_len": api.service.max_model_len,
            "tokens": ids,
        }
        if body.return_token_strs:
            reply["token_strs"] = [api.service.tokenizer.token_text(token_id) for token_id in ids]
        return reply

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> dict[str, str]:
        """Return the text that ids have, control tokens included."""
        api.check_model(body.model)
        api.fields.check(body.model_extra)
        return {"prompt": api.service.tokenizer.decode(body.tokens, skip_special_tokens=False)}

    @router.get("/tokenizer_info")
    async def tokenizer_info() -> dict[str, object]:
        """Return special tokens and chat template."""
        return dict(api.service.tokenizer_info)

    return router


async def _ids(api: Api, body: TokenizeBody) -> list[int]:
    deadline = Deadline.after(api.limits.request_timeout_s)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequestError("prompt", "Exactly one of prompt and messages is required.")
    if body.prompt is not None:
        add_special = body.add_special_tokens is not False
        return await api.service.encode(
            body.prompt, add_special_tokens=add_special, deadline=deadline
        )
    assert body.messages is not None
    options = ChatOptions(
        messages=body.messages,
        tools=body.tools,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        chat_template_kwargs=body.chat_template_kwargs,
    )
    prompt = await chat_prompt(
        options,
        api.service,
        add_special_tokens=bool(body.add_special_tokens),
        limits=api.limits,
        deadline=deadline,
    )
    return prompt.ids
