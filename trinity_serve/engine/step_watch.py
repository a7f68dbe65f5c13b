"""How long requests wait, prefill and decode in one engine; in detail for those that are traced.

Used on the engine's thread, with work per request and not per token wherever nothing is traced.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Protocol

from cluster.histogram import Counts, add_time, empty_counts
from cluster.metrics import Metric, Metrics
from trinity_serve.engine.request import GenerationRequest


class Watched(Protocol):
    """A sequence, as far as it is watched."""

    @property
    def request(self) -> GenerationRequest:
        """What was asked for."""

    @property
    def num_outputs(self) -> int:
        """Outputs so far, those of earlier attempts included."""


class WatchedChunk(Protocol):
    """A scheduled chunk, as far as it is watched."""

    @property
    def seq(self) -> Watched:
        """Whose rows these are."""

    @property
    def start(self) -> int:
        """The first row's position."""

    @property
    def num_rows(self) -> int:
        """How many rows."""


@dataclass(frozen=True, slots=True)
class ChunkNote:
    """Prompt rows of one step."""

    start: int
    num_rows: int
    began_s: float
    ended_s: float


@dataclass(slots=True)
class RequestNotes:
    """What a traced choice met in one engine. Seconds of the watch's clock; None: did not happen.

    Holds numbers and ids, never tokens or text.
    """

    request_id: str
    choice: int
    attempt: int
    trace: str
    """The traceparent that it came with."""
    prompt_tokens: int
    queued_s: float
    planned_s: float | None = None
    """When its first rows were scheduled."""
    first_token_s: float | None = None
    ended_s: float = 0.0
    chunks: list[ChunkNote] = field(default_factory=list)
    decode_steps: int = 0
    output_tokens: int = 0
    rows: int = 0
    """Its own token rows that went through the experts, of all steps."""
    calls: int = 0
    """Expert calls of the steps it was in; others' rows travel in them too."""
    retries: int = 0
    waited_us: dict[int, int] = field(default_factory=dict)
    """By MoE layer, how long those steps had nothing to do but wait for shards."""


@dataclass(frozen=True, slots=True)
class _Before:
    """Counters as a step with traced rows began."""

    at_s: float
    calls: int
    retries: int
    waited_us: Mapping[int, int]


class StepWatch:
    """Times of one engine's requests; `metrics` are those of its rank."""

    TIMES = ("queue", "prefill", "decode", "inter_token")

    def __init__(
        self,
        metrics: Metrics | None = None,
        sink: Callable[[RequestNotes], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`sink` gets the notes of each traced choice at its end; it must not block."""
        self.metrics = metrics or Metrics()
        self._sink = sink
        self._clock = clock
        self._queued: dict[Watched, float] = {}
        self._prefilling: dict[Watched, float] = {}
        self._decoding: dict[Watched, float] = {}
        self._computed_s = 0.0
        self._times = {name: empty_counts() for name in self.TIMES}
        self._traced: dict[Watched, RequestNotes] = {}
        self._before: _Before | None = None

    def queued(self, seq: Watched) -> None:
        """Take note that a choice waits for its first rows."""
        now_s = self._queued[seq] = self._clock()
        request = seq.request
        if request.trace and self._sink is not None:
            self._traced[seq] = RequestNotes(
                request.request_id,
                request.choice,
                request.attempt,
                request.trace,
                len(request.prompt_ids),
                now_s,
            )

    def planned(self, chunks: Seq[WatchedChunk]) -> None:
        """Take note of a step that is about to be computed."""
        if not self._queued and not self._traced:
            return
        now_s = self._clock()
        for chunk in chunks if self._queued else ():
            since_s = self._queued.pop(chunk.seq, None)
            if since_s is not None:
                add_time(self._times["queue"], now_s - since_s)
                self._prefilling[chunk.seq] = now_s
        if self._traced:
            self._begin_traced(chunks, now_s)

    def _begin_traced(self, chunks: Seq[WatchedChunk], now_s: float) -> None:
        self._before = None
        for chunk in chunks:
            notes = self._traced.get(chunk.seq)
            if notes is not None:
                notes.planned_s = notes.planned_s or now_s
                metrics = self.metrics
                self._before = self._before or _Before(
                    now_s,
                    metrics[Metric.DISPATCH_CALLS],
                    metrics[Metric.DISPATCH_RETRIES],
                    dict(metrics.times.waited_us),
                )

    def computed(self, chunks: Seq[WatchedChunk]) -> None:
        """Take note that the step's forward pass is done."""
        now_s = self._clock()
        if self._decoding:
            # Each of these has had its token at the end of the step before.
            add_time(self._times["inter_token"], now_s - self._computed_s, len(self._decoding))
        self._computed_s = now_s
        if self._before is not None:
            self._note_step(chunks, self._before, now_s)
            self._before = None

    def _note_step(self, chunks: Seq[WatchedChunk], before: _Before, now_s: float) -> None:
        calls = self.metrics[Metric.DISPATCH_CALLS] - before.calls
        retries = self.metrics[Metric.DISPATCH_RETRIES] - before.retries
        waited_us = {
            layer: total - before.waited_us.get(layer, 0)
            for layer, total in self.metrics.times.waited_us.items()
        }
        for chunk in chunks:
            notes = self._traced.get(chunk.seq)
            if notes is None:
                continue
            notes.rows += chunk.num_rows
            notes.calls += calls
            notes.retries += retries
            for layer, layer_us in waited_us.items():
                notes.waited_us[layer] = notes.waited_us.get(layer, 0) + layer_us
            if chunk.seq in self._decoding:
                notes.decode_steps += 1
            else:
                notes.chunks.append(ChunkNote(chunk.start, chunk.num_rows, before.at_s, now_s))

    def first_token(self, seq: Watched) -> None:
        """Take note of a choice's first output of this attempt."""
        now_s = self._computed_s
        since_s = self._prefilling.pop(seq, None)
        if since_s is None:
            return
        add_time(self._times["prefill"], now_s - since_s)
        self._decoding[seq] = now_s
        if (notes := self._traced.get(seq)) is not None:
            notes.first_token_s = now_s

    def ended(self, seq: Watched) -> None:
        """Forget a choice, however it ended."""
        now_s = self._clock()
        since_s = self._decoding.pop(seq, None)
        if since_s is not None:
            add_time(self._times["decode"], now_s - since_s)
        self._queued.pop(seq, None)
        self._prefilling.pop(seq, None)
        notes = self._traced.pop(seq, None)
        if notes is not None and self._sink is not None:
            notes.ended_s = now_s
            notes.output_tokens = seq.num_outputs
            self._sink(notes)

    def reset(self) -> None:
        """Forget every choice: all have ended with the engine's failure."""
        for seq in [*self._queued, *self._prefilling, *self._decoding]:
            self.ended(seq)
        self._before = None

    @property
    def num_watched(self) -> int:
        """Choices that are known; 0 when all have ended."""
        return len(self._queued) + len(self._prefilling) + len(self._decoding)

    def times(self) -> dict[str, Counts]:
        """Return a copy of the histograms (see `cluster.histogram`) by the names in `TIMES`."""
        return {name: counts.copy() for name, counts in self._times.items()}
