"""Which rows are computed in the next step: continuous batching under a token budget.

Only decides when a row is computed. Nothing here can change an output's bits, because a row's
result depends on its sequence alone. Knows no clock, no model, no sampling.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from operator import attrgetter

from cluster.errors import OverloadedError
from trinity_serve.engine.config import EngineConfig
from trinity_serve.engine.kv_blocks import KvBlocks, SequenceKv
from trinity_serve.engine.sequence import Sequence

RETRY_AFTER_S = 1.0
"""What a refused client is told: about the time in which a full queue moves."""

_EVEN_CONTEXT = 8192
"""Context in tokens at which a prompt row is given twice the time of one at the start."""

_order = attrgetter("order")


def mixed_chunk(most_rows: int, context: int) -> int:
    """Return how many prompt rows may join a step of decodes: fewer the longer their context.

    Attention over `context` tokens costs each row in proportion to them; rows times cost stay even.
    """
    return -(-most_rows * _EVEN_CONTEXT // (_EVEN_CONTEXT + context))


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows start … start + num_rows - 1 of one sequence, with the blocks they are written to."""

    seq: Sequence
    kv: SequenceKv
    start: int
    num_rows: int

    @property
    def end(self) -> int:
        """One past the last row's position."""
        return self.start + self.num_rows

    @property
    def gives_logits(self) -> bool:
        """Whether the chunk holds the sequence's last token, so that an output follows."""
        return self.end == self.seq.num_tokens and not self.seq.params.only_scores

    @property
    def scored_rows(self) -> range:
        """Positions whose logits score the prompt token that follows; mostly none."""
        if self.seq.num_to_score == 0:
            return range(0)
        return range(
            max(self.start, len(self.seq.prompt_logprobs)), min(self.end, self.seq.num_prompt - 1)
        )


class Scheduler:
    """Waiting and running sequences, both kept in order of (priority, arrival).

    Each step: one row for every sequence that decodes, then prefill chunks of running sequences,
    then of newly admitted ones, while the budget lasts. When blocks run out, the running
    sequence that is last in order goes back to waiting and is computed again later; its outputs
    stay. Admission stops at the first that does not fit, so that nobody is overtaken for ever.
    """

    def __init__(self, config: EngineConfig, kv: KvBlocks) -> None:
        self._config = config
        self._kv = kv
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.num_waiting_tokens = 0
        self._scored_rows_left = 0
        self._has_decodes = False

    def add(self, seq: Sequence) -> None:
        """Queue a sequence. Raises `OverloadedError` when the queue is full."""
        limit = self._config.max_waiting
        # The queue is what waits beyond the seats: with a free seat a sequence only passes through.
        free_seats = max(0, self._config.max_num_seqs - len(self.running))
        if len(self.waiting) >= limit + free_seats:
            raise OverloadedError("engine queue", limit, RETRY_AFTER_S)
        self._enqueue(seq)

    def remove(self, seq: Sequence) -> None:
        """Forget a sequence and free all it holds, wherever it is."""
        if seq.kv is None:
            self._dequeue(seq)
        else:
            self.running.remove(seq)
            self._release(seq)

    def schedule(self) -> list[Chunk]:
        """Return the next step's chunks, decodes first; blocks for all their rows are held."""
        plan: dict[Sequence, int] = {}
        num_preemptions = self.num_preemptions
        self._scored_rows_left = self._config.max_scored_rows
        for seq in [seq for seq in self.running if seq.num_remaining == 1]:
            self._place(seq, 1, plan)
        budget = self._config.max_num_batched_tokens - len(plan)
        self._has_decodes = bool(plan)
        if self._has_decodes:
            budget = min(budget, self._config.max_prefill_chunk)
        for seq in [seq for seq in self.running if seq.num_remaining > 1]:
            budget -= self._place(seq, self._wanted_rows(seq, budget), plan)
        if self.num_preemptions == num_preemptions:
            self._admit(budget, plan)
        return [
            Chunk(seq, seq.kv, seq.num_computed, num_rows)
            for seq, num_rows in plan.items()
            if seq.kv is not None
        ]

    def _place(self, seq: Sequence, num_rows: int, plan: dict[Sequence, int]) -> int:
        """Plan rows of a running sequence, making room if needed; return the rows planned."""
        while seq.kv is not None and num_rows > 0:
            if self._kv.extend(seq.kv, seq.num_computed + num_rows):
                plan[seq] = num_rows
                return num_rows
            victim = self.running[-1]
            plan.pop(victim, None)
            self._preempt(victim)
        return 0

    def _admit(self, budget: int, plan: dict[Sequence, int]) -> None:
        while self.waiting and budget > 0:
            seq = self.waiting[0]
            # One block for each running sequence, so that a newcomer is not preempted at once.
            seq.kv = self._kv.admit(
                seq.tokens_T,
                seq.digests,
                headroom=len(self.running),
                use_cache=seq.uses_cache,
            )
            if seq.kv is None:
                return
            self._dequeue(seq)
            insort(self.running, seq, key=_order)
            seq.num_computed = seq.kv.num_cached_tokens
            if seq.num_cached_tokens is None:
                seq.num_cached_tokens = seq.num_computed
            budget -= self._place(seq, self._wanted_rows(seq, budget), plan)

    def _wanted_rows(self, seq: Sequence, budget: int) -> int:
        num_rows = min(seq.num_remaining, budget)
        if self._has_decodes:
            num_rows = min(num_rows, mixed_chunk(budget, seq.num_computed))
        if seq.num_to_score:
            num_rows = min(num_rows, self._scored_rows_left)
            self._scored_rows_left -= num_rows
        return num_rows

    def _preempt(self, seq: Sequence) -> None:
        self.running.remove(seq)
        self._release(seq)
        self._enqueue(seq)
        self.num_preemptions += 1

    def _enqueue(self, seq: Sequence) -> None:
        insort(self.waiting, seq, key=_order)
        self.num_waiting_tokens += seq.num_tokens

    def _dequeue(self, seq: Sequence) -> None:
        self.waiting.remove(seq)
        self.num_waiting_tokens -= seq.num_tokens

    def _release(self, seq: Sequence) -> None:
        assert seq.kv is not None
        self._kv.release(seq.kv)
        seq.kv = None
        seq.num_computed = 0
