"""What a request must be to enter the engine, and the sequence that it becomes there."""

from __future__ import annotations

from cluster.errors import ContextTooLongError, InvalidRequestError
from trinity_serve.engine.grammar import GrammarMasks
from trinity_serve.engine.request import GenerationRequest
from trinity_serve.engine.sequence import Sequence


def check_prompt(request: GenerationRequest, context_limit: int, vocab_size: int) -> None:
    """Raise `InvalidRequestError`, its subclass `ContextTooLongError` too, for a wrong prompt."""
    num_prompt = len(request.prompt_ids)
    if num_prompt == 0:
        raise InvalidRequestError("prompt", "The prompt has no tokens; at least 1 is needed.")
    # What is only scored needs no room for an output.
    if num_prompt >= context_limit + request.params.only_scores:
        raise ContextTooLongError(num_prompt, request.params.max_tokens, context_limit)
    for token_id in (min(request.prompt_ids), max(request.prompt_ids)):
        if not 0 <= token_id < vocab_size:
            raise InvalidRequestError(
                "prompt",
                f"The prompt holds token id {token_id}; allowed are 0 to {vocab_size - 1}.",
            )


def open_sequence(
    request: GenerationRequest, arrival: int, grammars: GrammarMasks | None
) -> Sequence:
    """Return the sequence of `request`, the `arrival`-th of the engine.

    `grammars` also cut thought short, since they know the tokens' text. Raises
    `InvalidRequestError` when the request needs them and there are none.
    """
    params = request.params
    if not params.grammar and params.thought is None:
        return Sequence(request, arrival)
    if grammars is None:
        param = "structured_outputs" if params.grammar else "thinking_token_budget"
        message = f"{param} cannot be held to: the engine has no tokenizer."
        raise InvalidRequestError(param, message)
    return Sequence(
        request,
        arrival,
        grammars.open(params.grammar, request.emitted_ids) if params.grammar else None,
        None if params.thought is None else grammars.limit_thought(params.thought),
    )
