"""Traces of requests, apart from how they are written: what ingress and rank hand over.

Only numbers, ids and names of kinds go into a trace: no prompt, no output, no error's message.
"""

from __future__ import annotations

import importlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

from cluster.deadline import Deadline
from trinity_serve.config.observability import ObservabilityConfig
from trinity_serve.engine.step_watch import RequestNotes

logger = logging.getLogger(__name__)

Value = str | int | float | bool | Sequence[float] | Sequence[int]

MAX_WAITING_NOTES = 1024
CLOSE_TIMEOUT_S = 3.0
_PLUG_IN = "trinity_serve.observe.otel"
"""Imported when traces are on: it needs packages that are otherwise not needed."""


@dataclass(frozen=True, slots=True)
class SpanNote:
    """A span that is over. Seconds on the monotonic clock."""

    name: str
    began_s: float
    ended_s: float
    attributes: Mapping[str, Value] = field(default_factory=dict)
    children: tuple[SpanNote, ...] = ()


class OpenTrace(Protocol):
    """A request that is being traced in its ingress. Used on one event loop."""

    @property
    def traceparent(self) -> str:
        """What names its span to others (W3C)."""

    def describe(self, attributes: Mapping[str, Value]) -> None:
        """Add to what is known of the request."""

    def add(self, span: SpanNote) -> None:
        """Add a part that is over."""

    def end(self, failed: bool) -> None:
        """End it; once."""


class Tracer(Protocol):
    """Writes spans; never blocks, never raises. Thread-safe."""

    def begin(self, name: str, headers: Mapping[str, str]) -> OpenTrace | None:
        """Begin a request's span, below the caller's if `headers` name one.

        None when it is not to be traced.
        """

    def add(self, traceparent: str, span: SpanNote) -> None:
        """Add a span, with its children, below one of another process."""

    def close(self, deadline: Deadline) -> None:
        """Send what is left; blocks until the deadline at most."""


class TracerOpener(Protocol):
    """What the plug-in has under the name `open_tracer`."""

    def __call__(self, config: ObservabilityConfig, instance: str) -> Tracer: ...  # noqa: D102


def open_tracer(config: ObservabilityConfig, instance: str) -> Tracer | None:
    """Return what writes the traces of the process called `instance`; None when they are off.

    Raises `ConfigError` naming the extra when its packages are missing.
    """
    if config.traces is None:
        return None
    opener = cast(TracerOpener, importlib.import_module(_PLUG_IN).open_tracer)
    return opener(config, instance)


def spans_of(notes: RequestNotes) -> SpanNote:
    """Return the span tree of one attempt of one choice at its rank."""
    planned_s = notes.ended_s if notes.planned_s is None else notes.planned_s
    children = [SpanNote("queue", notes.queued_s, planned_s), *_computed(notes)]
    attributes: dict[str, Value] = {
        "trinity.request_id": notes.request_id,
        "trinity.choice": notes.choice,
        "trinity.attempt": notes.attempt,
        "gen_ai.usage.input_tokens": notes.prompt_tokens,
        "gen_ai.usage.output_tokens": notes.output_tokens,
    }
    return SpanNote("generate", notes.queued_s, notes.ended_s, attributes, tuple(children))


def _computed(notes: RequestNotes) -> Iterator[SpanNote]:
    if notes.planned_s is None:
        return
    for chunk in notes.chunks:
        rows: dict[str, Value] = {"trinity.start": chunk.start, "trinity.rows": chunk.num_rows}
        yield SpanNote("prefill", chunk.began_s, chunk.ended_s, rows)
    if notes.first_token_s is not None:
        steps: dict[str, Value] = {"trinity.steps": notes.decode_steps}
        yield SpanNote("decode", notes.first_token_s, notes.ended_s, steps)
    layers = [notes.waited_us[layer] / 1e3 for layer in sorted(notes.waited_us)]
    dispatched: dict[str, Value] = {
        "trinity.rows": notes.rows,
        "trinity.calls": notes.calls,
        "trinity.retries": notes.retries,
        "trinity.waited_ms": sum(layers),
        "trinity.waited_ms_by_layer": layers,
    }
    yield SpanNote("dispatch", notes.planned_s, notes.ended_s, dispatched)


class NotesWriter:
    """Turns a rank's notes into spans on a thread of its own. `put` is for the engine's thread."""

    def __init__(self, tracer: Tracer, max_waiting: int = MAX_WAITING_NOTES) -> None:
        self._tracer = tracer
        self._waiting: queue.Queue[RequestNotes | None] = queue.Queue(max_waiting)
        self._is_told = False
        self._thread = threading.Thread(target=self._run, name="write-traces", daemon=True)
        self._thread.start()

    def put(self, notes: RequestNotes) -> None:
        """Take the notes of a choice that has ended; dropped when too many wait."""
        try:
            self._waiting.put_nowait(notes)
        except queue.Full:
            if not self._is_told:
                logger.warning("traces are dropped: %d wait to be written", self._waiting.maxsize)
            self._is_told = True

    def close(self, deadline: Deadline) -> None:
        """Write what waits and send it; blocks until the deadline at most."""
        try:
            self._waiting.put(None, timeout=deadline.remaining_s())
        except queue.Full:
            logger.warning("traces are left behind")
        self._thread.join(deadline.remaining_s())
        self._tracer.close(deadline)

    def _run(self) -> None:
        while (notes := self._waiting.get()) is not None:
            self._tracer.add(notes.trace, spans_of(notes))


class Traces:
    """What one process traces with; all of it does nothing when traces are off."""

    def __init__(self, tracer: Tracer | None) -> None:
        self.tracer = tracer
        self._writer = None if tracer is None else NotesWriter(tracer)

    @classmethod
    def open(cls, config: ObservabilityConfig, instance: str) -> Traces:
        """See `open_tracer`."""
        return cls(open_tracer(config, instance))

    @property
    def sink(self) -> Callable[[RequestNotes], None] | None:
        """Where an engine's notes go."""
        return None if self._writer is None else self._writer.put

    def close(self) -> None:
        """Send what is left; blocks for a few seconds at most."""
        if self._writer is not None:
            self._writer.close(Deadline.after(CLOSE_TIMEOUT_S))
