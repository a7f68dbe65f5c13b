"""Events that are not a token of a running request: refusals and ends."""

from __future__ import annotations

from cluster.errors import TrinityError
from trinity_serve.engine.request import (
    FinishReason,
    GenerationRequest,
    TokenEvent,
    TokenLogprobs,
)
from trinity_serve.engine.sequence import Sequence


def refusal(request: GenerationRequest, error: TrinityError) -> TokenEvent:
    """Return the event that tells a request's end when `Engine.submit` raised `error`."""
    return TokenEvent(
        request_id=request.request_id,
        choice=request.choice,
        attempt=request.attempt,
        index=len(request.emitted_ids),
        token_id=None,
        finish=FinishReason.ERROR,
        error=error,
    )


def end_event(seq: Sequence, finish: FinishReason, error: TrinityError | None = None) -> TokenEvent:
    """Return a last event without a token."""
    stopped = finish is FinishReason.STOP
    return TokenEvent(
        request_id=seq.request.request_id,
        choice=seq.request.choice,
        attempt=seq.request.attempt,
        index=seq.num_outputs,
        token_id=None,
        finish=finish,
        stop_token_id=seq.last_token if stopped else None,
        error=error,
        num_cached_tokens=seq.num_cached_tokens or 0,
        prompt_logprobs=told_scores(seq) if error is None and seq.num_outputs == 0 else None,
        routed_experts=None if seq.routed is None else seq.routed.take(),
    )


def told_scores(seq: Sequence) -> tuple[TokenLogprobs, ...] | None:
    """Return what was asked for of the prompt; None where nothing was."""
    return None if seq.params.num_prompt_logprobs is None else tuple(seq.prompt_logprobs)
