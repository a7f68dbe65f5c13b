"""`thinking_token_budget`: how many tokens a model may think before it has to answer."""

from __future__ import annotations

from cluster.errors import InvalidRequestError
from trinity_serve.api.message.reasoning import END_THINK, END_THOUGHT, THINK
from trinity_serve.api.service import ModelService
from trinity_serve.engine.request import ThoughtLimit

PARAM = "thinking_token_budget"


def thought_limit(
    budget: int | None, service: ModelService, *, opened: bool
) -> ThoughtLimit | None:
    """Return what bounds the thought; None without a budget.

    `opened`: the prompt ends inside a block. Raises `InvalidRequestError` for a model that does not
    think: nothing could be bounded.
    """
    if budget is None:
        return None
    if not service.formats.reasoning:
        message = f"{PARAM} = {budget} is not supported: this model does not think."
        raise InvalidRequestError(PARAM, message)
    end_ids = service.tokenizer.encode(END_THOUGHT, add_special_tokens=False)
    return ThoughtLimit(budget, "" if opened else THINK, END_THINK, tuple(end_ids))
