"""One engine: requests in, steps, token events out. A plain object; time is passed in.

Ties scheduler, KV blocks, model and sampler together and keeps the promise that every request
ends exactly once and that everything it held is free then.
"""

from __future__ import annotations

from torch import Tensor

from cluster.errors import NonFiniteLogitsError, TrinityError
from trinity_serve.engine.admission import check_prompt, open_sequence
from trinity_serve.engine.batch import build_batch
from trinity_serve.engine.config import EngineConfig
from trinity_serve.engine.events import end_event, told_scores
from trinity_serve.engine.grammar import GrammarMasks
from trinity_serve.engine.kv_blocks import KvBlocks
from trinity_serve.engine.request import (
    EngineStats,
    FinishReason,
    GenerationRequest,
    TokenEvent,
)
from trinity_serve.engine.routing import RoutingRecorder, check_report
from trinity_serve.engine.runner import ModelRunner
from trinity_serve.engine.sampler import Sample, Sampler
from trinity_serve.engine.scheduler import Chunk, Scheduler, at_fault
from trinity_serve.engine.sequence import Sequence
from trinity_serve.engine.step_watch import StepWatch

Key = tuple[str, int]


class Engine:
    """Continuous batching over one model. Not thread-safe: one thread owns it.

    Requests are named by `key` and `attempt`. A higher attempt replaces a lower one without an
    event, since whoever sent it has given up on the older; an equal or lower one is a repetition
    and is ignored: the live attempt's events stand for it.
    """

    def __init__(
        self,
        runner: ModelRunner,
        config: EngineConfig,
        sampler: Sampler | None = None,
        grammars: GrammarMasks | None = None,
        recorder: RoutingRecorder | None = None,
        watch: StepWatch | None = None,
    ) -> None:
        self.config = config
        self.runner = runner
        self._sampler = sampler or Sampler()
        self._grammars = grammars
        self._recorder = recorder
        self._watch = watch or StepWatch()
        self._kv = KvBlocks(config)
        self._scheduler = Scheduler(config, self._kv)
        self._open: dict[Key, Sequence] = {}
        self._ends: dict[Key, TokenEvent] = {}
        """Ends that came about between steps; the next step tells them."""
        self._num_arrivals = 0
        self._counts = EngineStats()

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to compute or to tell."""
        return bool(self._open or self._ends)

    def submit(self, request: GenerationRequest) -> None:
        """Take a request. Its events come from `step`, its last one exactly once.

        Raises `InvalidRequestError` (its subclass `ContextTooLongError` too) or `OverloadedError`;
        then nothing of the request is kept, but an older attempt is gone all the same.
        """
        older, end = self._open.get(request.key), self._ends.get(request.key)
        live = older.request if older is not None else end
        if live is not None and live.attempt >= request.attempt:
            return
        if older is not None:
            self._drop(older)
        self._ends.pop(request.key, None)
        check_prompt(request, self.config.context_limit, self.runner.vocab_size)
        check_report(request, self._recorder)
        self._num_arrivals += 1
        seq = open_sequence(request, self._num_arrivals, self._grammars)
        reason = seq.finish_reason(self.config.context_limit)
        if reason is not None:
            # A replay whose tokens were all emitted and only its end was lost, or max_tokens 0.
            self._ends[request.key] = end_event(seq, finish=reason)
            return
        self._scheduler.add(seq)
        self._open[request.key] = seq
        self._watch.queued(seq)

    def cancel(self, key: Key, attempt: int | None = None) -> bool:
        """End a request with `CANCELLED`; return whether it was open.

        With `attempt`, only that one: a late cancellation does not hit its replacement.
        """
        seq = self._open.get(key)
        if seq is None or attempt not in (None, seq.request.attempt):
            return False
        self._drop(seq)
        self._ends[key] = end_event(seq, finish=FinishReason.CANCELLED)
        return True

    def step(self, now_s: float) -> list[TokenEvent]:
        """Compute one step and return its events; blocks for the forward pass.

        A `TrinityError` of the forward pass ends the requests of this step; others live on. One
        that names the requests at fault ends those, and the rest is computed again.
        Any other exception leaves the engine in need of `reset`.
        """
        events = list(self._ends.values())
        self._ends.clear()
        chunks = self._scheduler.schedule(now_s)
        if chunks:
            self._watch.planned(chunks)
            while chunks:
                try:
                    logits = self._forward(chunks)
                except TrinityError as error:
                    failed, chunks = at_fault(chunks, error)
                    events += [self._fail(chunk.seq, error) for chunk in failed]
                else:
                    self._watch.computed(chunks)
                    events += self._advance(chunks, logits)
                    break
            self._counts.num_steps += 1
        self._counts.last_step_at_s = now_s
        return events

    def _forward(self, chunks: list[Chunk]) -> Tensor:
        batch = build_batch(chunks, self._kv)
        recorder = self._recorder
        if recorder is None or not any(chunk.seq.routed is not None for chunk in chunks):
            return self.runner.forward(batch)
        with recorder.recording():
            logits_RV = self.runner.forward(batch)
        ids_TLK = recorder.rows()
        for chunk, first in zip(chunks, batch.query_start_B1.tolist(), strict=False):
            if chunk.seq.routed is not None:
                chunk.seq.routed.add(chunk.start, ids_TLK[first : first + chunk.num_rows])
        return logits_RV

    def reset(self, error: TrinityError) -> list[TokenEvent]:
        """End every request with `error` and start afresh: pools, tables and cache included."""
        events = list(self._ends.values())
        events += [
            end_event(seq, finish=FinishReason.ERROR, error=error) for seq in self._open.values()
        ]
        self._counts.num_preemptions += self._scheduler.num_preemptions
        prefix_stats = self._kv.prefix_stats
        self._kv = KvBlocks(self.config)
        self._kv.prefix_stats = prefix_stats
        self._scheduler = Scheduler(self.config, self._kv)
        self._open, self._ends = {}, {}
        self._watch.reset()
        return events

    def stats(self) -> EngineStats:
        """Return a snapshot of what is going on and of the totals since the start."""
        kv, counts = self._kv, self._counts
        return EngineStats(
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting),
            num_waiting_tokens=self._scheduler.num_waiting_tokens,
            kv_usage=kv.usage,
            num_steps=counts.num_steps,
            num_preemptions=counts.num_preemptions + self._scheduler.num_preemptions,
            prompt_tokens=counts.prompt_tokens,
            generation_tokens=counts.generation_tokens,
            last_step_at_s=counts.last_step_at_s,
            extra={
                "prefix_cache_queries": float(kv.prefix_stats.query_tokens),
                "prefix_cache_hits": float(kv.prefix_stats.hit_tokens),
                "global_blocks_held": float(kv.global_pool.num_held),
                "sliding_blocks_held": float(kv.sliding_pool.num_held),
                **{name.value: float(n) for name, n in self._watch.metrics.snapshot().items()},
            },
            times=self._watch.times(),
            by_shard=self._watch.metrics.times.snapshot(),
        )

    def close(self) -> None:
        """End the threads that grammars have."""
        if self._grammars is not None:
            self._grammars.close()

    def check(self) -> None:
        """Assert the invariants of the blocks (for tests)."""
        self._kv.check()

    def _advance(self, chunks: list[Chunk], logits_RV: Tensor) -> list[TokenEvent]:
        for chunk in chunks:
            seq = chunk.seq
            seq.num_computed = chunk.end
            self._kv.commit(chunk.kv, chunk.end, seq.tokens_T, seq.digests)
        events: list[TokenEvent] = []
        if any(chunk.seq.num_to_score for chunk in chunks):
            finished, rows, events = self._score(chunks, logits_RV)
            logits_RV = logits_RV[rows]
        else:
            finished = [chunk.seq for chunk in chunks if chunk.gives_logits]
        samples = self._sampler.sample(logits_RV, finished)
        events += [self._take(seq, sample) for seq, sample in zip(finished, samples, strict=True)]
        if self._grammars is not None:
            self._advance_grammars(self._grammars, finished)
        return events

    def _advance_grammars(self, grammars: GrammarMasks, sampled: list[Sequence]) -> None:
        """Let the masks of those that go on be worked out during the next forward pass."""
        going_on = [
            (seq.grammar, seq.last_token)
            for seq in sampled
            if seq.grammar is not None and seq.request.key in self._open
        ]
        if going_on:
            grammars.advance(going_on)

    def _score(
        self, chunks: list[Chunk], logits_RV: Tensor
    ) -> tuple[list[Sequence], list[int], list[TokenEvent]]:
        """Score prompts with the rows that are theirs.

        Returns the sequences whose output is due, the row each is chosen from, and the events of
        those that are done by this or failed.
        """
        due: list[Sequence] = []
        rows: list[int] = []
        events: list[TokenEvent] = []
        first = 0
        for chunk in chunks:
            seq, scored = chunk.seq, chunk.scored_rows
            last = first + len(scored)
            gives_logits = chunk.gives_logits
            next_ids = seq.tokens_T[scored.start + 1 : scored.stop + 1]
            count = seq.params.num_prompt_logprobs or 0
            try:
                seq.prompt_logprobs += self._sampler.score(logits_RV[first:last], next_ids, count)
            except NonFiniteLogitsError as error:
                events.append(self._fail(seq, error))
            else:
                if gives_logits:
                    due.append(seq)
                    rows.append(last)
                elif seq.params.only_scores and seq.num_to_score == 0:
                    self._counts.prompt_tokens += seq.num_prompt
                    self._drop(seq)
                    events.append(end_event(seq, finish=FinishReason.LENGTH))
            first = last + gives_logits
        return due, rows, events

    def _take(self, seq: Sequence, sample: Sample) -> TokenEvent:
        """Append a sampled token and return its event, the last one if it ends the request."""
        if sample.error is not None:
            return self._fail(seq, sample.error)
        if seq.num_outputs == len(seq.request.emitted_ids):
            self._counts.prompt_tokens += seq.num_prompt
            self._watch.first_token(seq)
        index = seq.num_outputs
        seq.append(sample.token_id)
        self._counts.generation_tokens += 1
        finish = seq.finish_reason(self.config.context_limit)
        if finish is not None:
            self._drop(seq)
        return TokenEvent(
            request_id=seq.request.request_id,
            choice=seq.request.choice,
            attempt=seq.request.attempt,
            index=index,
            token_id=sample.token_id,
            logprobs=sample.logprobs,
            finish=finish,
            stop_token_id=sample.token_id if finish is FinishReason.STOP else None,
            num_cached_tokens=seq.num_cached_tokens or 0,
            prompt_logprobs=told_scores(seq) if index == 0 else None,
            routed_experts=None if seq.routed is None else seq.routed.take(),
        )

    def _fail(self, seq: Sequence, error: TrinityError) -> TokenEvent:
        self._drop(seq)
        return end_event(seq, finish=FinishReason.ERROR, error=error)

    def _drop(self, seq: Sequence) -> None:
        self._scheduler.remove(seq)
        self._watch.ended(seq)
        del self._open[seq.request.key]
