"""What changes logits before a token is chosen. Log-probabilities are taken before.

A processor is a pure function of the choice's tokens so far, so that a replay on another machine
finds it in the same state.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from trinity_serve.engine.request import SamplingParams
from trinity_serve.model.batch import Int64

Float32 = npt.NDArray[np.float32]


class LogitsProcessor(Protocol):
    """One change to one row."""

    def is_active(self, num_outputs: int) -> bool:
        """Return whether the output after `num_outputs` others is affected."""
        ...

    def apply(self, logits_V: Float32, prompt_ids: Int64, output_ids: Int64) -> None:
        """Change the row in place. -inf forbids a token; at least one must stay allowed."""
        ...


class Penalties:
    """Repetition (of prompt and outputs), frequency and presence (of outputs) penalties.

    repetition r: a seen token's logit is divided by r if positive, multiplied by r if not.
    frequency f and presence p: an output token's logit loses f per occurrence, and p once.
    """

    def __init__(self, repetition: float, frequency: float, presence: float) -> None:
        self._repetition = np.float32(repetition)
        self._frequency = np.float32(frequency)
        self._presence = np.float32(presence)

    def is_active(self, num_outputs: int) -> bool:
        """Frequency and presence need an output; repetition sees the prompt as well."""
        return num_outputs > 0 or self._repetition != 1.0

    def apply(self, logits_V: Float32, prompt_ids: Int64, output_ids: Int64) -> None:
        """See the class."""
        if self._repetition != 1.0:
            seen = np.unique(np.concatenate([prompt_ids, output_ids]))
            logits = logits_V[seen]
            factor = self._repetition
            logits_V[seen] = np.where(logits > 0, logits / factor, logits * factor)
        outputs, counts = np.unique(output_ids, return_counts=True)
        logits_V[outputs] -= self._frequency * counts.astype(np.float32) + self._presence


class LogitBias:
    """Adds a constant to given tokens."""

    def __init__(self, bias: tuple[tuple[int, float], ...]) -> None:
        self._ids = np.array([token for token, _ in bias], np.int64)
        self._values = np.array([value for _, value in bias], np.float32)

    def is_active(self, num_outputs: int) -> bool:
        """Return True: every output is affected."""
        return True

    def apply(self, logits_V: Float32, prompt_ids: Int64, output_ids: Int64) -> None:
        """Add each token's bias."""
        logits_V[self._ids] += self._values


class AllowedTokens:
    """Forbids all tokens but the given ones."""

    def __init__(self, allowed: frozenset[int]) -> None:
        self._ids = np.array(sorted(allowed), np.int64)

    def is_active(self, num_outputs: int) -> bool:
        """Return True: every output is affected."""
        return True

    def apply(self, logits_V: Float32, prompt_ids: Int64, output_ids: Int64) -> None:
        """Set every other token to -inf."""
        kept = logits_V[self._ids]
        logits_V.fill(-np.inf)
        logits_V[self._ids] = kept


class BadWords:
    """Forbids the last id of each given sequence when the outputs end with the ids before it."""

    def __init__(self, words: tuple[tuple[int, ...], ...]) -> None:
        self._single = np.array(sorted({word[0] for word in words if len(word) == 1}), np.int64)
        self._longer = [(word[:-1], word[-1]) for word in words if len(word) > 1]

    def is_active(self, num_outputs: int) -> bool:
        """Return whether some word could be completed by this output."""
        return len(self._single) > 0 or num_outputs > 0

    def apply(self, logits_V: Float32, prompt_ids: Int64, output_ids: Int64) -> None:
        """Set the ids that would complete a word to -inf."""
        logits_V[self._single] = -np.inf
        for before, last in self._longer:
            if tuple(output_ids[-len(before) :].tolist()) == before:
                logits_V[last] = -np.inf


class MinTokens:
    """Forbids the ids that would end the choice until it has `min_tokens` outputs."""

    def __init__(self, min_tokens: int, stop_token_ids: frozenset[int]) -> None:
        self._min_tokens = min_tokens
        self._ids = np.array(sorted(stop_token_ids), np.int64)

    def is_active(self, num_outputs: int) -> bool:
        """Return whether too few outputs are there."""
        return num_outputs < self._min_tokens

    def apply(self, logits_V: Float32, prompt_ids: Int64, output_ids: Int64) -> None:
        """Set the stop ids to -inf."""
        logits_V[self._ids] = -np.inf


def build_processors(params: SamplingParams) -> tuple[LogitsProcessor, ...]:
    """Return the processors that `params` asks for, in the order in which they apply.

    Penalties see the model's own logits; masks come last, so that nothing lifts them.
    """
    processors: list[LogitsProcessor] = []
    penalties = (params.repetition_penalty, params.frequency_penalty, params.presence_penalty)
    if penalties != (1.0, 0.0, 0.0):
        processors.append(Penalties(*penalties))
    if params.logit_bias:
        processors.append(LogitBias(params.logit_bias))
    if params.allowed_token_ids is not None:
        processors.append(AllowedTokens(params.allowed_token_ids))
    if params.bad_words:
        processors.append(BadWords(params.bad_words))
    if params.min_tokens > 0 and params.stop_token_ids:
        processors.append(MinTokens(params.min_tokens, params.stop_token_ids))
    return tuple(processors)
