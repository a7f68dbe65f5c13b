"""Output held to a grammar: which tokens may come next, worked out beside the engine's steps.

A grammar travels as text and every rank compiles it for itself. After each token one job computes
the next masks on a thread of its own while the model computes the next logits; `apply` waits for
it. The state is a function of the tokens emitted so far, so a replay makes it again from them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from hashlib import blake2b
from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from cluster.errors import DeadlineExceededError, InvalidRequestError
from trinity_serve.engine.logits_processors import Float32
from trinity_serve.engine.request import ThoughtLimit
from trinity_serve.engine.thought import BytesOfToken, ThoughtBudget
from trinity_serve.model.batch import Int64

MASK_TIMEOUT_S = 10.0
"""A mask takes some 0.1 ms and a grammar some ms; their fuel below ends both long before this."""
_CACHED_GRAMMARS = 64
_REMEMBERED_GRAMMARS = 4096
PARAM = "structured_outputs"
_BITS_B8 = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_BIAS_B8: Float32 = np.where(_BITS_B8 == 1, 0.0, -np.inf).astype(np.float32)
"""For each byte of a bit mask what is added to its eight logits. Read only."""


def _limits() -> LLParserLimits:
    """Bound what a hostile grammar costs: about 20 ms to build, 5 ms a mask, 40 MB of states."""
    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=70_000,
        step_max_items=50_000,
        max_lexer_states=20_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


class GrammarCompiler:
    """Grammars over the tokenizer in a `tokenizer.json`, which is read when the first one comes.

    Thread-safe; the matchers that it makes are not.
    """

    def __init__(self, path: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._path = path
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._lock = threading.Lock()
        self._loaded: LLTokenizer | None = None
        self._limits = _limits()
        self._good: set[bytes] = set()

    def compile(self, grammar: str) -> LLMatcher:
        """Return a matcher at the grammar's beginning. Blocks; see `_limits` for how long.

        Raises `InvalidRequestError` with the reason when it is not valid, too large, or accepts
        nothing.
        """
        matcher = LLMatcher(self._tokenizer(), grammar, log_level=0, limits=self._limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        if matcher.is_error() or (matcher.is_stopped() and not matcher.is_accepting()):
            reason = matcher.get_error() or "nothing satisfies it"
            raise InvalidRequestError(PARAM, f"The grammar cannot be used: {reason[:300]}.")
        return matcher

    def check(self, grammar: str) -> None:
        """Raise what `compile` would; what was right lately is not compiled again."""
        digest = blake2b(grammar.encode(), digest_size=16).digest()
        if digest in self._good:
            return
        self.compile(grammar)
        if len(self._good) >= _REMEMBERED_GRAMMARS:
            self._good.clear()
        self._good.add(digest)

    def special_token(self, text: str) -> bool:
        """Return whether `text` is one special token, which a grammar must not write in quotes."""
        tokenizer = self._tokenizer()
        ids = tokenizer.tokenize_str(text, parse_special=True)
        return len(ids) == 1 and tokenizer.is_special_token(ids[0])

    def bytes_of_token(self) -> BytesOfToken:
        """Return what tells a token's text, of special ones too. Blocks while it is read."""
        tokenizer = self._tokenizer()
        return lambda token_id: tokenizer.decode_bytes([token_id])

    def _tokenizer(self) -> LLTokenizer:
        with self._lock:
            if self._loaded is None:
                self._loaded = LLTokenizer(
                    str(self._path),
                    n_vocab=self._vocab_size,
                    eos_token=self._eos_token_ids or None,
                )
            return self._loaded


class GrammarState:
    """One choice's place in its grammar: the last of its logits processors.

    Written by the mask thread; the engine reads `_bias_M8` after `_job` is done.
    """

    def __init__(self, vocab_size: int) -> None:
        self._matcher: LLMatcher | None = None
        self._bias_M8 = np.empty((-(-vocab_size // 8), 8), np.float32)
        """0 for what is allowed, -inf for what is not: the mask's M bytes, spread."""
        self._job: Future[None]
        self._error: InvalidRequestError | None = None

    def is_active(self, num_outputs: int) -> bool:
        """Return True: every output is affected."""
        return True

    def apply(self, logits_V: Float32, prompt_ids: Int64, output_ids: Int64) -> None:
        """Forbid what the grammar does not allow.

        It wins over all other processors: where they left nothing that it allows, what it allows
        is equally likely. Raises what the compilation raised, or `DeadlineExceededError`.
        """
        try:
            self._job.result(MASK_TIMEOUT_S)
        except FutureTimeoutError as error:
            raise DeadlineExceededError("Computing a grammar's mask", MASK_TIMEOUT_S) from error
        if self._error is not None:
            raise self._error
        bias_V = self._bias_M8.reshape(-1)[: len(logits_V)]
        # An addition has no branches; setting by a mask takes some 40 times as long.
        logits_V += bias_V
        if not np.isfinite(logits_V.max()):
            logits_V[:] = bias_V

    def spread(self, mask: bytes) -> None:
        """Keep a mask of one bit a token in the form that `apply` adds."""
        bytes_M = np.frombuffer(mask, np.uint8, count=len(self._bias_M8))
        # Without `clip` the result would go through a copy; a byte is never out of range.
        np.take(_BIAS_B8, bytes_M, axis=0, out=self._bias_M8, mode="clip")


class GrammarMasks:
    """Opens and advances grammar states on two threads of its own, one for each kind of work."""

    def __init__(self, compiler: GrammarCompiler, vocab_size: int) -> None:
        self._compiler = compiler
        self._vocab_size = vocab_size
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        """Written by the compiling thread only."""
        self._compiling = ThreadPoolExecutor(1, thread_name_prefix="grammar-compile")
        self._masking = ThreadPoolExecutor(1, thread_name_prefix="grammar-mask")

    def open(self, grammar: str, emitted_ids: Sequence[int]) -> GrammarState:
        """Return the state after `emitted_ids`; what is wrong shows when it is applied."""
        state = GrammarState(self._vocab_size)
        state._job = self._compiling.submit(self._open, state, grammar, list(emitted_ids))
        return state

    def limit_thought(self, limit: ThoughtLimit) -> ThoughtBudget:
        """Return what cuts a choice's thought short; the tokenizer may still be read then."""
        return ThoughtBudget(limit, self._compiling.submit(self._compiler.bytes_of_token))

    def advance(self, states: Sequence[tuple[GrammarState, int]]) -> None:
        """Let each state take a token; all their next masks are one job."""
        steps = [(state, token_id, state._job) for state, token_id in states]
        job = self._masking.submit(self._advance, steps)
        for state, _ in states:
            state._job = job

    def close(self) -> None:
        """End the threads; work that waits is dropped."""
        for threads in (self._compiling, self._masking):
            threads.shutdown(wait=False, cancel_futures=True)

    def _open(self, state: GrammarState, grammar: str, emitted_ids: list[int]) -> None:
        compiled = self._compiled.get(grammar)
        if compiled is None:
            compiled = self._compiled[grammar] = self._compiler.compile(grammar)
            if len(self._compiled) > _CACHED_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        state._matcher = compiled.deep_copy()
        if emitted_ids:
            state._matcher.consume_tokens(emitted_ids)
        self._mask(state)

    def _advance(self, steps: list[tuple[GrammarState, int, Future[None]]]) -> None:
        for state, token_id, before in steps:
            # A matter of form: whoever has a token to take has waited for the mask before it.
            if isinstance(error := before.exception(MASK_TIMEOUT_S), InvalidRequestError):
                state._error = error
            elif state._matcher is not None:
                state._matcher.consume_token(token_id)
                self._mask(state)

    def _mask(self, state: GrammarState) -> None:
        assert state._matcher is not None
        mask = state._matcher.compute_bitmask()
        if state._matcher.is_error():
            reason = state._matcher.get_error()[:300]
            state._error = InvalidRequestError(PARAM, f"The grammar became too complex: {reason}.")
        state.spread(mask)
