"""One choice inside the engine: its tokens, how far they are computed, and what it holds."""

from __future__ import annotations

import numpy as np

from trinity_serve.engine.grammar import GrammarState
from trinity_serve.engine.kv_blocks import SequenceKv
from trinity_serve.engine.logits_processors import LogitsProcessor, build_processors
from trinity_serve.engine.prefix_cache import BlockDigests
from trinity_serve.engine.request import (
    FinishReason,
    GenerationRequest,
    SamplingParams,
    TokenLogprobs,
)
from trinity_serve.engine.routing import RoutedRows
from trinity_serve.engine.thought import ThoughtBudget
from trinity_serve.model.batch import Int64


class Sequence:
    """Prompt and outputs in one growing array. Outputs of earlier attempts count as outputs.

    `num_computed` tokens have K and V in the cache; the rest is still to be computed. The last
    token's row gives the logits of the next output.
    """

    def __init__(
        self,
        request: GenerationRequest,
        arrival: int,
        grammar: GrammarState | None = None,
        thought: ThoughtBudget | None = None,
    ) -> None:
        self.request = request
        self.grammar = grammar
        """What the outputs are held to; the last processor."""
        self.order = (request.priority, arrival)
        """Who goes first: the smaller. Unique; survives preemption."""
        self.num_prompt = len(request.prompt_ids)
        self.num_tokens = self.num_prompt + len(request.emitted_ids)
        self.num_computed = 0
        self.kv: SequenceKv | None = None
        self.digests = BlockDigests(request.cache_salt)
        self.num_cached_tokens: int | None = None
        """Tokens found in the prefix cache at first admission; None before."""
        self.prompt_logprobs: list[TokenLogprobs] = []
        """Of prompt tokens 1, 2, … as far as they were scored; survives preemption."""
        self.routed = _routed_rows(request)
        """Where its rows went, when that was asked for."""
        self._processors: tuple[LogitsProcessor, ...] = build_processors(request.params)
        # What is forced wins over all but the grammar, and the grammar lets it through.
        if thought is not None:
            self._processors += (thought,)
        if grammar is not None:
            self._processors += (grammar,)
        self._buffer: Int64 = np.array(request.prompt_ids + request.emitted_ids, np.int64)

    @property
    def params(self) -> SamplingParams:
        """How tokens are chosen."""
        return self.request.params

    @property
    def choice(self) -> int:
        """The choice's number within its request: part of the sampling key."""
        return self.request.choice

    @property
    def num_outputs(self) -> int:
        """Outputs so far, those of earlier attempts included; the next one's index."""
        return self.num_tokens - self.num_prompt

    @property
    def num_remaining(self) -> int:
        """Rows still to be computed before the next output; 1 while decoding."""
        return self.num_tokens - self.num_computed

    @property
    def num_to_score(self) -> int:
        """Prompt rows whose logits are still wanted; they are computed, not found in the cache.

        A later attempt does not score again: the first token's event had the scores.
        """
        if self.params.num_prompt_logprobs is None or self.request.emitted_ids:
            return 0
        return self.num_prompt - 1 - len(self.prompt_logprobs)

    @property
    def uses_cache(self) -> bool:
        """Whether a prefix may be found instead of computed: not where each row is asked about."""
        return self.routed is None and self.num_to_score == 0

    @property
    def tokens_T(self) -> Int64:
        """Prompt and outputs: a view, valid until the next `append`."""
        return self._buffer[: self.num_tokens]

    @property
    def prompt_ids(self) -> Int64:
        """The prompt's ids."""
        return self._buffer[: self.num_prompt]

    @property
    def output_ids(self) -> Int64:
        """The outputs' ids so far."""
        return self._buffer[self.num_prompt : self.num_tokens]

    def active_processors(self) -> list[LogitsProcessor]:
        """Return what changes the logits of the next output, in order."""
        if not self._processors:
            return []
        return [p for p in self._processors if p.is_active(self.num_outputs)]

    def append(self, token_id: int) -> None:
        """Add an output."""
        if self.num_tokens == len(self._buffer):
            grown = np.empty(max(64, 2 * self.num_tokens), np.int64)
            grown[: self.num_tokens] = self._buffer
            self._buffer = grown
        self._buffer[self.num_tokens] = token_id
        self.num_tokens += 1

    def finish_reason(self, context_limit: int) -> FinishReason | None:
        """Return why the sequence is complete as it stands, or None while it is not."""
        params, num_outputs = self.params, self.num_outputs
        if num_outputs > params.min_tokens and self.last_token in params.stop_token_ids:
            return FinishReason.STOP
        if num_outputs >= params.max_tokens or self.num_tokens >= context_limit:
            return FinishReason.LENGTH if self.num_to_score == 0 else None
        return None

    @property
    def last_token(self) -> int:
        """The id of the last token."""
        return self.token_at(self.num_tokens - 1)

    def token_at(self, position: int) -> int:
        """Return the id at an absolute position."""
        return int(self._buffer[position])


def _routed_rows(request: GenerationRequest) -> RoutedRows | None:
    start = request.params.routed_experts_from
    if start is None:
        return None
    if request.emitted_ids:
        # An earlier attempt told the rows that its tokens were chosen from.
        start = max(start, len(request.prompt_ids) + len(request.emitted_ids) - 1)
    return RoutedRows(start)
