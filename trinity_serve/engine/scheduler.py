"""Which rows are computed in the next step: continuous batching under a token budget.

Only decides when a row is computed. Nothing here can change an output's bits, because a row's
result depends on its sequence alone. Knows no model and no sampling; time is passed in.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from operator import attrgetter

from cluster.errors import OverloadedError, PoisonedRequestError, TrinityError
from trinity_serve.engine.config import EngineConfig
from trinity_serve.engine.kv_blocks import KvBlocks, SequenceKv
from trinity_serve.engine.prefill_pace import LEAST_ROWS, PrefillPace
from trinity_serve.engine.sequence import Sequence

RETRY_AFTER_S = 1.0
"""What a refused client is told: about the time in which a full queue moves."""

_order = attrgetter("order")


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


@dataclass(frozen=True, slots=True)
class _Planned:
    """What the step under way holds, to learn from how long it takes."""

    at_s: float
    num_decodes: int
    prefill_rows: int
    row_context: float
    """Sum of the prefill rows' positions."""


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
        bound_s = config.max_mixed_step_s
        self._pace = None if bound_s is None else PrefillPace(bound_s)
        self._planned: _Planned | None = None
        self._seconds_left = 0.0
        """Of the step that is planned, for prompt rows beside decodes."""
        self._has_decodes = self._has_prefill = False

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
        if not self.running and not self.waiting:
            # What comes next comes after a rest, whose time is no step's.
            self._planned = None

    def schedule(self, now_s: float = 0.0) -> list[Chunk]:
        """Return the next step's chunks, decodes first; blocks for all their rows are held.

        The step before has taken until `now_s`.
        """
        self._learn(now_s)
        plan: dict[Sequence, int] = {}
        num_preemptions = self.num_preemptions
        self._scored_rows_left = self._config.max_scored_rows
        for seq in [seq for seq in self.running if seq.num_remaining == 1]:
            self._place(seq, 1, plan)
        budget = self._config.max_num_batched_tokens - len(plan)
        self._has_decodes, self._has_prefill = bool(plan), False
        if self._has_decodes:
            budget = min(budget, self._config.max_prefill_chunk)
            self._seconds_left = self._pace.budget_s() if self._pace else 0.0
        for seq in [seq for seq in self.running if seq.num_remaining > 1]:
            budget -= self._place(seq, self._wanted_rows(seq, budget), plan)
        if self.num_preemptions == num_preemptions:
            self._admit(budget, plan)
        chunks = [
            Chunk(seq, seq.kv, seq.num_computed, num_rows)
            for seq, num_rows in plan.items()
            if seq.kv is not None
        ]
        self._planned = _planned(chunks, now_s) if self._pace else None
        return chunks

    def _learn(self, now_s: float) -> None:
        last, self._planned = self._planned, None
        if last is None or self._pace is None or not last.num_decodes:
            return
        if last.prefill_rows:
            context = last.row_context / last.prefill_rows
            self._pace.mixed(last.prefill_rows, context, now_s - last.at_s)
        else:
            self._pace.decoded(now_s - last.at_s)

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
        while self.waiting and budget > 0 and self._has_time():
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
        if self._has_decodes and self._pace is not None:
            num_rows = min(num_rows, self._paced_rows(self._pace, seq.num_computed, budget))
        if seq.num_to_score:
            num_rows = min(num_rows, self._scored_rows_left)
            self._scored_rows_left -= num_rows
        return num_rows

    def _paced_rows(self, pace: PrefillPace, context: int, budget: int) -> int:
        """Return the rows that the rest of the step's time allows, and take it."""
        num_rows = pace.rows_within(self._seconds_left, context)
        if not self._has_prefill:
            # The step's first prompt gets on in any case.
            num_rows = max(LEAST_ROWS, num_rows)
        num_rows, self._has_prefill = min(num_rows, budget), True
        row_s = pace.row_s(context)
        is_spent = row_s is None or num_rows == 0
        self._seconds_left = 0.0 if is_spent else self._seconds_left - num_rows * (row_s or 0.0)
        return num_rows

    def _has_time(self) -> bool:
        """Whether the step may take another prompt."""
        if self._pace is None or not self._has_decodes or not self._has_prefill:
            return True
        return self._seconds_left > 0.0

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


def _planned(chunks: list[Chunk], now_s: float) -> _Planned:
    prefills = [chunk for chunk in chunks if chunk.num_rows > 1]
    positions = sum(chunk.num_rows * (chunk.start + chunk.end - 1) / 2 for chunk in prefills)
    num_rows = sum(chunk.num_rows for chunk in prefills)
    return _Planned(now_s, len(chunks) - len(prefills), num_rows, positions)


def at_fault(chunks: list[Chunk], error: TrinityError) -> tuple[list[Chunk], list[Chunk]]:
    """Return the chunks that end with `error`, and those that can be computed without them.

    What a failed pass wrote to the KV blocks of the rest is written again with the same bits.
    """
    if not isinstance(error, PoisonedRequestError):
        return chunks, []
    failed = [chunks[position] for position in error.requests]
    rest = [chunk for i, chunk in enumerate(chunks) if i not in error.requests]
    return failed, rest
