"""Prometheus metrics of one ingress, under the names that Ray's Serve LLM dashboard asks for.

That dashboard writes `vllm_…` with underscores and filters on `model_name`. The engine's own
numbers come from its last snapshot, so that scraping costs the engine nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from trinity_serve.engine.request import EngineStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
PREFIX_CACHE_COUNTERS = {
    "prefix_cache_queries": "Context tokens looked up in the prefix cache.",
    "prefix_cache_hits": "Context tokens found in the prefix cache.",
}
"""Numbers of `EngineStats.extra` that vLLM has under the same names."""
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)


class MetricsMirror(Protocol):
    """Where an ingress's numbers are shown besides `/metrics`."""

    def observe(self, name: str, value: float, buckets: Sequence[float]) -> None:
        """Take a value of the histogram `name`, whose buckets are always the same."""

    def count(self, name: str, labels: Mapping[str, str]) -> None:
        """Add one to the counter `name`."""


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
        self._open = self._gauge("trinity_open_requests", "Generations open in this ingress.")
        self._first_token = self._histogram(
            "vllm_time_to_first_token_seconds", "From the body's arrival to the first token."
        )
        self._per_token = self._histogram(
            "vllm_request_time_per_output_token_seconds", "Mean time between tokens of a request."
        )
        self._latency = self._histogram(
            "vllm_e2e_request_latency_seconds", "From the body's arrival to the last token."
        )
        self._prompt_tokens = self._histogram(
            "vllm_request_prompt_tokens", "Prompt tokens of a request.", _TOKENS
        )
        self._generation_tokens = self._histogram(
            "vllm_request_generation_tokens", "Tokens made for a request.", _TOKENS
        )
        self._success = Counter(
            "vllm_request_success",
            "Choices by the reason they ended.",
            ("model_name", "finished_reason"),
            registry=registry,
        )

    def opened(self) -> None:
        """Count a generation that starts."""
        self.num_open += 1
        self._open.set(self.num_open)

    def closed(self) -> None:
        """Count a generation that has ended, in whatever way."""
        self.num_open -= 1
        self._open.set(self.num_open)

    def first_token(self, seconds: float) -> None:
        """Record the time to a request's first token."""
        self._first_token.observe(seconds)

    def ended(self, finished_reason: str) -> None:
        """Count the end of one choice: stop, length, abort or error."""
        self._success.labels(self._model, finished_reason).inc()
        if self._mirror is not None:
            self._mirror.count("vllm_request_success", {"finished_reason": finished_reason})

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

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, ("model_name",), registry=self._registry).labels(self._model)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> _Observer:
        histogram = Histogram(name, text, ("model_name",), registry=self._registry, buckets=buckets)
        return _Observer(name, buckets, histogram.labels(self._model), self._mirror)


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
        self._labels = (model_name,)
        self.stats = EngineStats()

    def collect(self) -> Iterator[Metric]:
        """Yield one family per number."""
        stats = self.stats
        yield self._gauge("vllm_num_requests_running", "Choices in a step.", stats.num_running)
        yield self._gauge("vllm_num_requests_waiting", "Choices queued.", stats.num_waiting)
        yield self._gauge("vllm_kv_cache_usage_perc", "Share of KV in use, 0-1.", stats.kv_usage)
        yield self._counter("vllm_num_preemptions", "Choices preempted.", stats.num_preemptions)
        yield self._counter("vllm_prompt_tokens", "Prompt tokens computed.", stats.prompt_tokens)
        yield self._counter("vllm_generation_tokens", "Tokens made.", stats.generation_tokens)
        yield self._counter("trinity_engine_steps", "Steps of the engine.", stats.num_steps)
        for name, text in PREFIX_CACHE_COUNTERS.items():
            yield self._counter(f"vllm_{name}", text, stats.extra.get(name, 0.0))
        for name, value in stats.extra.items():
            yield self._gauge(f"trinity_{name}", "See the engine's statistics.", value)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=("model_name",))
        family.add_metric(self._labels, value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=("model_name",))
        family.add_metric(self._labels, value)
        return family
