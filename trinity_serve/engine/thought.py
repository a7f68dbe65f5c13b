"""Thought that is cut short: once a block has had its tokens, the end of the block is forced.

Tags are looked for in the text and not among ids, since a model may write them by other tokens than
its tokenizer would. What is forced is a function of the tokens emitted so far, so a replay on
another rank forces the same.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from enum import Enum

import numpy as np

from cluster.errors import DeadlineExceededError
from trinity_serve.engine.logits_processors import Float32
from trinity_serve.engine.request import ThoughtLimit
from trinity_serve.model.batch import Int64

TOKENS_TIMEOUT_S = 10.0
"""A tokenizer is read once, in about a second."""

BytesOfToken = Callable[[int], bytes]


class _Place(Enum):
    BEFORE = "before"
    WITHIN = "within"
    AFTER = "after"


class ThoughtBudget:
    """One choice's thought: counts its tokens and forces its end. A logits processor.

    Written by the engine's thread only; `tokens` may be worked out on another one.
    """

    def __init__(self, limit: ThoughtLimit, tokens: Future[BytesOfToken]) -> None:
        self._limit = limit
        self._tokens = tokens
        self._begin, self._end = limit.begin.encode(), limit.end.encode()
        self._place = _Place.BEFORE if limit.begin else _Place.WITHIN
        self._text = b""
        """Before the block, all that was written; within, as much as may begin the end tag."""
        self._num_seen = 0
        self._num_tokens = 0
        """Of the thought."""
        self._num_forced = 0
        """How much of the end has been written; 0 again when it is whole."""

    def is_active(self, num_outputs: int) -> bool:
        """Return whether something may still be forced."""
        return self._place is not _Place.AFTER or self._is_forcing

    def apply(self, logits_V: Float32, prompt_ids: Int64, output_ids: Int64) -> None:
        """Leave the next token of the block's end alone where it is due.

        Raises `DeadlineExceededError` when the tokenizer is not there in time.
        """
        bytes_of = self._bytes_of()
        for token_id in output_ids[self._num_seen :].tolist():
            self._take(token_id, bytes_of)
        self._num_seen = len(output_ids)
        if self._is_due or self._is_forcing:
            logits_V.fill(-np.inf)
            logits_V[self._limit.end_ids[self._num_forced]] = 0.0

    @property
    def _is_due(self) -> bool:
        return self._place is _Place.WITHIN and self._num_tokens >= self._limit.max_tokens

    @property
    def _is_forcing(self) -> bool:
        return self._num_forced > 0

    def _bytes_of(self) -> BytesOfToken:
        try:
            return self._tokens.result(TOKENS_TIMEOUT_S)
        except FutureTimeoutError as error:
            raise DeadlineExceededError("Reading the tokenizer", TOKENS_TIMEOUT_S) from error

    def _take(self, token_id: int, bytes_of: BytesOfToken) -> None:
        self._note_forced(token_id)
        self._text += bytes_of(token_id)
        if self._place is _Place.BEFORE:
            self._look_for_begin()
        elif self._place is _Place.WITHIN:
            self._num_tokens += 1
            self._look_for_end()

    def _note_forced(self, token_id: int) -> None:
        if not (self._is_due or self._is_forcing):
            return
        # A grammar may have won over what was forced; then it is tried from the beginning.
        end_ids = self._limit.end_ids
        as_forced = token_id == end_ids[self._num_forced]
        self._num_forced = (self._num_forced + 1) % len(end_ids) if as_forced else 0

    def _look_for_begin(self) -> None:
        """A block stands at the beginning of an output or nowhere."""
        self._text = self._text.lstrip()
        if self._text.startswith(self._begin):
            self._place, self._text = _Place.WITHIN, self._text[len(self._begin) :]
            self._look_for_end()
        elif not self._begin.startswith(self._text):
            self._place, self._text = _Place.AFTER, b""

    def _look_for_end(self) -> None:
        if self._end in self._text:
            self._place, self._text = _Place.AFTER, b""
        else:
            self._text = self._text[-len(self._end) + 1 :]
