"""Numbers of ranks and ingresses as Ray's metrics: from every node's agent into one Prometheus.

Ray puts `ray_` before each name and `_total` behind counters; the names are those that its shipped
Serve LLM dashboard asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from ray.util.metrics import Counter, Gauge, Histogram

from trinity_serve.api.metrics import PREFIX_CACHE_COUNTERS
from trinity_serve.engine.request import EngineStats


class RankMetrics:
    """The engine's numbers under the names that Ray's Serve LLM dashboard asks for."""

    _GAUGES: ClassVar[dict[str, str]] = {
        "vllm_num_requests_running": "num_running",
        "vllm_num_requests_waiting": "num_waiting",
        "vllm_kv_cache_usage_perc": "kv_usage",
    }
    _COUNTERS: ClassVar[dict[str, str]] = {
        "vllm_prompt_tokens": "prompt_tokens",
        "vllm_generation_tokens": "generation_tokens",
        "vllm_num_preemptions": "num_preemptions",
    }
    _EXTRA_COUNTERS: ClassVar[dict[str, str]] = {
        f"vllm_{name}": name for name in PREFIX_CACHE_COUNTERS
    }

    def __init__(self, model_name: str) -> None:
        self._tags = {"model_name": model_name}
        keys = ("model_name",)
        self._gauges = {name: Gauge(name, tag_keys=keys) for name in self._GAUGES}
        names = (*self._COUNTERS, *self._EXTRA_COUNTERS)
        self._counters = {name: Counter(name, tag_keys=keys) for name in names}
        self._counted = dict.fromkeys(names, 0)

    def show(self, stats: EngineStats) -> None:
        """Bring Ray's metrics up to `stats`."""
        for name, field in self._GAUGES.items():
            self._gauges[name].set(float(getattr(stats, field)), self._tags)
        for name, field in self._COUNTERS.items():
            self._count_up_to(name, int(getattr(stats, field)))
        for name, key in self._EXTRA_COUNTERS.items():
            self._count_up_to(name, int(stats.extra.get(key, 0.0)))

    def _count_up_to(self, name: str, total: int) -> None:
        if total > self._counted[name]:
            self._counters[name].inc(float(total - self._counted[name]), self._tags)
            self._counted[name] = total


class IngressMetrics:
    """A `MetricsMirror`: what an ingress counts, shown by Ray."""

    def __init__(self, model_name: str) -> None:
        self._tags = {"model_name": model_name}
        self._histograms: dict[str, Histogram] = {}
        self._counters: dict[str, Counter] = {}

    def observe(self, name: str, value: float, buckets: Sequence[float]) -> None:
        """See `MetricsMirror`."""
        if name not in self._histograms:
            self._histograms[name] = Histogram(
                name, boundaries=list(buckets), tag_keys=("model_name",)
            )
        self._histograms[name].observe(value, self._tags)

    def count(self, name: str, labels: Mapping[str, str]) -> None:
        """See `MetricsMirror`."""
        if name not in self._counters:
            self._counters[name] = Counter(name, tag_keys=("model_name", *labels))
        self._counters[name].inc(1.0, {**self._tags, **labels})
