"""Request fields to `SamplingParams` and text options, checked against model and limits."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import ContextTooLongError, InvalidRequestError
from trinity_serve.api.limits import ApiLimits
from trinity_serve.api.schema import GenerationBody
from trinity_serve.api.service import ModelService
from trinity_serve.engine.request import SamplingParams, ThoughtLimit


@dataclass(frozen=True, slots=True)
class TextOptions:
    """What the API does with tokens that the engine knows nothing of."""

    stop_strings: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    min_tokens: int = 0
    """Stop strings are looked for after this many tokens only."""
    own_stop_ids: frozenset[int] = frozenset()
    """Ids that the request itself named; an end on one of them is its `stop_reason`."""


@dataclass(frozen=True, slots=True)
class LogprobCounts:
    """How many of the best are told besides each token; None: no log-probabilities."""

    generated: int | None = None
    prompt: int | None = None


def text_options(body: GenerationBody, service: ModelService, limits: ApiLimits) -> TextOptions:
    """Check the stop fields. Raises `InvalidRequestError` naming field, value and limit."""
    return TextOptions(
        stop_strings=_stop_strings(body, limits),
        include_stop=bool(body.include_stop_str_in_output),
        skip_special_tokens=body.skip_special_tokens is not False,
        min_tokens=body.min_tokens or 0,
        own_stop_ids=_stop_ids(body, service, limits),
    )


def sampling_params(
    body: GenerationBody,
    service: ModelService,
    *,
    max_tokens: int,
    seed: int,
    logprobs: LogprobCounts,
    grammar: str,
    thought: ThoughtLimit | None,
    limits: ApiLimits,
) -> SamplingParams:
    """Fill the body's gaps with the checkpoint's defaults. Raises `InvalidRequestError`."""
    defaults = service.defaults
    min_tokens = body.min_tokens or 0
    if min_tokens > max_tokens:
        message = f"min_tokens = {min_tokens} is above max_tokens = {max_tokens}."
        raise InvalidRequestError("min_tokens", message)
    _check_counts(logprobs, limits)
    eos_ids = frozenset() if body.ignore_eos else frozenset(defaults.eos_token_ids)
    return SamplingParams(
        max_tokens=max_tokens,
        seed=seed,
        temperature=_or(body.temperature, defaults.temperature),
        top_p=_or(body.top_p, defaults.top_p),
        top_k=defaults.top_k if body.top_k is None else max(0, body.top_k),
        min_p=_or(body.min_p, defaults.min_p),
        min_tokens=min_tokens,
        ignore_eos=bool(body.ignore_eos),
        stop_token_ids=eos_ids | frozenset(body.stop_token_ids or ()),
        num_logprobs=logprobs.generated,
        num_prompt_logprobs=logprobs.prompt,
        logprob_token_ids=_logprob_ids(body, service, logprobs, limits),
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        presence_penalty=_or(body.presence_penalty, 0.0),
        logit_bias=_logit_bias(body, service),
        allowed_token_ids=_allowed_ids(body, service),
        bad_words=_bad_words(body, service, limits),
        grammar=grammar,
        thought=thought,
        routed_experts_from=(body.routed_experts_prompt_start or 0)
        if body.return_routed_experts
        else None,
    )


def output_budget(
    asked: int | None, default: int | None, num_prompt_tokens: int, limit: int
) -> int:
    """Return how many tokens may be made.

    A budget that was asked for must fit into the context of `limit` tokens; `default` (None: the
    whole rest) shrinks to fit. Raises `ContextTooLongError` with both numbers.
    """
    rest = limit - num_prompt_tokens
    if asked is not None:
        if asked > rest:
            raise ContextTooLongError(num_prompt_tokens, asked, limit)
        return asked
    if rest < 1:
        raise ContextTooLongError(num_prompt_tokens, 1, limit)
    return rest if default is None else min(default, rest)


def check_num_scores(counts: LogprobCounts, num_prompt_tokens: int, limits: ApiLimits) -> None:
    """Raise `InvalidRequestError` when the prompt's log-probabilities are too many to send."""
    num_scores = num_prompt_tokens * ((counts.prompt or 0) + 1)
    if counts.prompt is not None and num_scores > limits.max_prompt_logprobs:
        message = (
            f"{num_prompt_tokens} prompt tokens with {counts.prompt} log-probabilities besides "
            f"each are {num_scores} values; allowed: {limits.max_prompt_logprobs}."
        )
        raise InvalidRequestError("prompt_logprobs", message)


def _check_counts(counts: LogprobCounts, limits: ApiLimits) -> None:
    for param, count in (("logprobs", counts.generated), ("prompt_logprobs", counts.prompt)):
        if count is not None and count > limits.max_logprobs:
            message = f"{count} log-probabilities per token; allowed: 0 to {limits.max_logprobs}."
            raise InvalidRequestError(param, message)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _logit_bias(body: GenerationBody, service: ModelService) -> tuple[tuple[int, float], ...]:
    biases: dict[int, float] = {}
    for name, bias in (body.logit_bias or {}).items():
        if not (name.isascii() and name.isdigit() and len(name) <= 10):
            message = f"logit_bias has the key {ascii(name)[:40]}; allowed: token ids in digits."
            raise InvalidRequestError("logit_bias", message)
        biases[int(name)] = bias
    check_ids("logit_bias", list(biases), service.vocab_size)
    return tuple(sorted(biases.items()))


def _allowed_ids(body: GenerationBody, service: ModelService) -> frozenset[int] | None:
    if body.allowed_token_ids is None:
        return None
    check_ids("allowed_token_ids", body.allowed_token_ids, service.vocab_size)
    return frozenset(body.allowed_token_ids)


def _logprob_ids(
    body: GenerationBody, service: ModelService, counts: LogprobCounts, limits: ApiLimits
) -> tuple[int, ...]:
    ids = body.logprob_token_ids or []
    if not ids:
        return ()
    if counts.generated is None:
        message = "logprob_token_ids needs logprobs to be asked for."
        raise InvalidRequestError("logprob_token_ids", message)
    if len(ids) > limits.max_logprobs:
        message = f"logprob_token_ids has {len(ids)} ids; allowed: {limits.max_logprobs}."
        raise InvalidRequestError("logprob_token_ids", message)
    check_ids("logprob_token_ids", ids, service.vocab_size)
    return tuple(dict.fromkeys(ids))


def _bad_words(
    body: GenerationBody, service: ModelService, limits: ApiLimits
) -> tuple[tuple[int, ...], ...]:
    """Return each word's ids, as it begins a text and as it follows a space."""
    words = body.bad_words or []
    longest = max(map(len, words), default=0)
    if len(words) > limits.max_bad_words or longest > limits.max_bad_word_chars:
        message = (
            f"bad_words has {len(words)} words of up to {longest} characters; "
            f"allowed: {limits.max_bad_words} of {limits.max_bad_word_chars}."
        )
        raise InvalidRequestError("bad_words", message)
    encode = service.tokenizer.encode
    found = {
        tuple(encode(form, add_special_tokens=False))
        for word in words
        for form in (word, " " + word.lstrip())
    }
    return tuple(sorted(ids for ids in found if ids))


def _stop_strings(body: GenerationBody, limits: ApiLimits) -> tuple[str, ...]:
    stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if len(stops) > limits.max_stop_strings:
        message = f"stop has {len(stops)} strings; allowed: {limits.max_stop_strings}."
        raise InvalidRequestError("stop", message)
    for stop in stops:
        if not stop:
            raise InvalidRequestError("stop", "stop holds an empty string; allowed: one or more.")
        if len(stop) > limits.max_stop_chars:
            message = f"A stop string has {len(stop)} characters; allowed: {limits.max_stop_chars}."
            raise InvalidRequestError("stop", message)
    return stops


def _stop_ids(body: GenerationBody, service: ModelService, limits: ApiLimits) -> frozenset[int]:
    ids = body.stop_token_ids or []
    if len(ids) > limits.max_stop_token_ids:
        message = f"stop_token_ids has {len(ids)} ids; allowed: {limits.max_stop_token_ids}."
        raise InvalidRequestError("stop_token_ids", message)
    check_ids("stop_token_ids", ids, service.vocab_size)
    return frozenset(ids)


def check_ids(param: str, token_ids: list[int], vocab_size: int) -> None:
    """Raise `InvalidRequestError` when an id is not in the vocabulary."""
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
        bad = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        message = f"{param} holds the id {bad}; allowed: 0 to {vocab_size - 1}."
        raise InvalidRequestError(param, message)
