"""Samples of one process as Ray's metrics: from every node's agent into one Prometheus.

Ray puts `ray_` before each name and `_total` behind counters. It has no way to take a histogram's
counts, so a histogram's three series are gauges that grow; queries do not see the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from ray.util.metrics import Counter, Gauge

from cluster.histogram import cumulative, sum_s, total
from cluster.metric_spec import Kind, MetricSpec, Sample

Labels = tuple[tuple[str, str], ...]


class Series(Protocol):
    """One of Ray's metrics: labels tell its series apart."""

    def record(self, value: float, labels: dict[str, str]) -> None:
        """Set a gauge, or add to a counter."""


class _RayCounter:
    def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        self._counter = Counter(name, text, labels)

    def record(self, value: float, labels: dict[str, str]) -> None:
        """See `Series`."""
        self._counter.inc(value, labels)


class _RayGauge:
    def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        self._gauge = Gauge(name, text, labels)

    def record(self, value: float, labels: dict[str, str]) -> None:
        """See `Series`."""
        self._gauge.set(value, labels)


MakeSeries = Callable[[str, str, tuple[str, ...]], Series]


class RayExport:
    """Shows samples of one process. Used by one thread.

    `specs`: what samples may name.
    """

    def __init__(
        self,
        specs: Iterable[MetricSpec],
        labels: Mapping[str, str],
        make_counter: MakeSeries = _RayCounter,
        make_gauge: MakeSeries = _RayGauge,
    ) -> None:
        self._labels = dict(labels)
        self._kinds: dict[str, Kind] = {}
        self._series: dict[str, Series] = {}
        self._counted: dict[tuple[str, Labels], float] = {}
        for spec in specs:
            self._kinds[spec.name] = spec.kind
            keys = (*self._labels, *spec.labels)
            if spec.kind is Kind.HISTOGRAM:
                for name in spec.series:
                    own = ("le",) if name.endswith("_bucket") else ()
                    self._series[name] = make_gauge(name, spec.help, (*keys, *own))
            else:
                make = make_counter if spec.kind is Kind.COUNTER else make_gauge
                self._series[spec.name] = make(spec.name, spec.help, keys)

    def show(self, samples: Iterable[Sample]) -> None:
        """Bring Ray's metrics up to `samples`."""
        for sample in samples:
            kind, labels = self._kinds[sample.name], self._labels | dict(sample.labels)
            if isinstance(sample.value, Sequence):
                self._show_counts(sample.name, sample.value, labels)
            elif kind is Kind.COUNTER:
                self._count_up_to(sample.name, float(sample.value), labels)
            else:
                self._series[sample.name].record(float(sample.value), labels)

    def _show_counts(self, name: str, counts: Sequence[int], labels: dict[str, str]) -> None:
        for bound, count in cumulative(counts):
            self._series[f"{name}_bucket"].record(float(count), labels | {"le": bound})
        self._series[f"{name}_sum"].record(sum_s(counts), labels)
        self._series[f"{name}_count"].record(float(total(counts)), labels)

    def _count_up_to(self, name: str, value: float, labels: dict[str, str]) -> None:
        key = (name, tuple(labels.items()))
        before = self._counted.get(key, 0.0)
        # Ray refuses an increment of zero: a counter appears with the first thing that it counts.
        if value > before:
            self._counted[key] = value
            self._series[name].record(value - before, labels)
