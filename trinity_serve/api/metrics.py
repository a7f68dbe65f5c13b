"""Prometheus metrics of one ingress, under the names that Ray's Serve LLM dashboard asks for.

That dashboard writes `vllm_…` with underscores and filters on `model_name`. The engine's own
numbers come from its last snapshot, so that scraping costs the engine nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from cluster.histogram import cumulative, sum_s
from cluster.metric_spec import Kind, MetricSpec
from trinity_serve.engine.request import EngineStats
from trinity_serve.observe import specs
from trinity_serve.observe.engine_samples import engine_samples

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MODEL = "model_name"


class MetricsMirror(Protocol):
    """Where an ingress's numbers are shown besides `/metrics`."""

    def observe(self, name: str, value: float, buckets: Sequence[float]) -> None:
        """Take a value of the histogram `name`, whose buckets are always the same."""

    def count(self, name: str, labels: Mapping[str, str]) -> None:
        """Add one to the counter `name`."""

    def set(self, name: str, value: float) -> None:
        """Take the value of the gauge `name`."""


class ApiMetrics:
    """What one ingress counts. Written by its event loop only."""

    def __init__(
        self, registry: CollectorRegistry, model_name: str, mirror: MetricsMirror | None = None
    ) -> None:
        self._registry = registry
        self._model = model_name
        self._mirror = mirror
        self._engine = _EngineCollector(model_name)
        registry.register(self._engine)
        self.num_open = 0
        spec = specs.OPEN_REQUESTS
        self._open = Gauge(spec.name, spec.help, (_MODEL,), registry=registry).labels(model_name)
        self._first_token = self._histogram(specs.TIME_TO_FIRST_TOKEN)
        self._per_token = self._histogram(specs.TIME_PER_TOKEN)
        self._latency = self._histogram(specs.LATENCY)
        self._prompt_tokens = self._histogram(specs.PROMPT_TOKENS)
        self._generation_tokens = self._histogram(specs.MADE_TOKENS)
        labels = (_MODEL, *specs.SUCCESS.labels)
        self._success = Counter(specs.SUCCESS.name, specs.SUCCESS.help, labels, registry=registry)

    def opened(self) -> None:
        """Count a generation that starts."""
        self._show_open(self.num_open + 1)

    def closed(self) -> None:
        """Count a generation that has ended, in whatever way."""
        self._show_open(self.num_open - 1)

    def _show_open(self, num_open: int) -> None:
        self.num_open = num_open
        self._open.set(num_open)
        if self._mirror is not None:
            self._mirror.set(specs.OPEN_REQUESTS.name, num_open)

    def first_token(self, seconds: float) -> None:
        """Record the time to a request's first token."""
        self._first_token.observe(seconds)

    def ended(self, finished_reason: str) -> None:
        """Count the end of one choice: stop, length, abort or error."""
        self._success.labels(self._model, finished_reason).inc()
        if self._mirror is not None:
            self._mirror.count(specs.SUCCESS.name, {"finished_reason": finished_reason})

    def done(
        self, prompt_tokens: int, completion_tokens: int, total_s: float, first_s: float
    ) -> None:
        """Record a request that ran to its end."""
        self._prompt_tokens.observe(prompt_tokens)
        self._generation_tokens.observe(completion_tokens)
        self._latency.observe(total_s)
        if completion_tokens > 1:
            self._per_token.observe((total_s - first_s) / (completion_tokens - 1))

    def render(self, stats: EngineStats) -> bytes:
        """Return the text that Prometheus reads."""
        self._engine.stats = stats
        return generate_latest(self._registry)

    def _histogram(self, spec: MetricSpec) -> _Observer:
        made = Histogram(
            spec.name, spec.help, (_MODEL,), registry=self._registry, buckets=spec.bounds
        )
        return _Observer(spec.name, spec.bounds, made.labels(self._model), self._mirror)


@dataclass(frozen=True, slots=True)
class _Observer:
    """A histogram and its mirror."""

    name: str
    buckets: tuple[float, ...]
    histogram: Histogram
    mirror: MetricsMirror | None

    def observe(self, value: float) -> None:
        """Take a value."""
        self.histogram.observe(value)
        if self.mirror is not None:
            self.mirror.observe(self.name, value, self.buckets)


class _EngineCollector(Collector):
    """The engine's last snapshot as metric families."""

    def __init__(self, model_name: str) -> None:
        self._model = model_name
        self.stats = EngineStats()

    def collect(self) -> Iterator[Metric]:
        """Yield one family per metric, also of those that have no sample yet."""
        families = {spec.name: _family(spec) for spec in specs.RANK_SPECS}
        for sample in engine_samples(self.stats):
            family = families[sample.name]
            own = specs.BY_NAME[sample.name].labels
            labels = (self._model, *(sample.labels[label] for label in own))
            if isinstance(sample.value, Sequence):
                assert isinstance(family, HistogramMetricFamily)
                family.add_metric(labels, list(cumulative(sample.value)), sum_s(sample.value))
            else:
                assert not isinstance(family, HistogramMetricFamily)
                family.add_metric(labels, sample.value)
        yield from families.values()


def _family(spec: MetricSpec) -> CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily:
    labels = (_MODEL, *spec.labels)
    if spec.kind is Kind.HISTOGRAM:
        return HistogramMetricFamily(spec.name, spec.help, labels=labels)
    if spec.kind is Kind.COUNTER:
        return CounterMetricFamily(spec.name, spec.help, labels=labels)
    return GaugeMetricFamily(spec.name, spec.help, labels=labels)
