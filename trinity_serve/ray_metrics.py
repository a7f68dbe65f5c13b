"""Numbers of ranks and ingresses as Ray's metrics: from every node's agent into one Prometheus.

Ray puts `ray_` before each name and `_total` behind counters; the names are those that its shipped
Serve LLM dashboard asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray.util.metrics import Counter, Gauge, Histogram

from cluster.ray_export import RayExport
from trinity_serve.engine.request import EngineStats
from trinity_serve.observe.engine_samples import engine_samples
from trinity_serve.observe.specs import BY_NAME, RANK_SPECS


class RankMetrics:
    """A rank's numbers, shown by Ray."""

    def __init__(self, model_name: str) -> None:
        self._export = RayExport(RANK_SPECS, {"model_name": model_name})

    def show(self, stats: EngineStats) -> None:
        """Bring Ray's metrics up to `stats`."""
        self._export.show(engine_samples(stats))


class IngressMetrics:
    """A `MetricsMirror`: what an ingress counts, shown by Ray."""

    def __init__(self, model_name: str) -> None:
        self._tags = {"model_name": model_name}
        self._histograms: dict[str, Histogram] = {}
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}

    def observe(self, name: str, value: float, buckets: Sequence[float]) -> None:
        """See `MetricsMirror`."""
        if name not in self._histograms:
            self._histograms[name] = Histogram(
                name, BY_NAME[name].help, boundaries=list(buckets), tag_keys=("model_name",)
            )
        self._histograms[name].observe(value, self._tags)

    def count(self, name: str, labels: Mapping[str, str]) -> None:
        """See `MetricsMirror`."""
        if name not in self._counters:
            keys = ("model_name", *labels)
            self._counters[name] = Counter(name, BY_NAME[name].help, tag_keys=keys)
        self._counters[name].inc(1.0, {**self._tags, **labels})

    def set(self, name: str, value: float) -> None:
        """See `MetricsMirror`."""
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, BY_NAME[name].help, tag_keys=("model_name",))
        self._gauges[name].set(value, self._tags)
