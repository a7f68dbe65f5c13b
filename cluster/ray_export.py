"""Samples of one process as Ray's metrics: from every node's agent into one Prometheus.

Ray puts `ray_` before each name. All series are gauges there, under the names that Prometheus gives
a counter's and a histogram's: Ray has no way to take a histogram's counts, and shows a counter from
the first thing on that it counts, so that `increase` would never see the first failure. Queries do
not see the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from ray.util.metrics import Gauge

from cluster.histogram import cumulative, sum_s, total
from cluster.metric_spec import MetricSpec, Sample


class Series(Protocol):
    """One of Ray's gauges; labels tell its series apart."""

    def set(self, value: float, labels: dict[str, str]) -> None:
        """Show this value."""


MakeSeries = Callable[[str, str, tuple[str, ...]], Series]


class RayExport:
    """Shows samples of one process. Used by one thread.

    `specs`: what samples may name; each has `labels` besides its own.
    """

    def __init__(
        self,
        specs: Iterable[MetricSpec],
        labels: Mapping[str, str],
        make: MakeSeries = Gauge,
    ) -> None:
        self._labels = dict(labels)
        self._names: dict[str, str] = {}
        self._series: dict[str, Series] = {}
        for spec in specs:
            self._names[spec.name] = spec.shown_name
            for name in spec.series:
                own = ("le",) if name.endswith("_bucket") else ()
                self._series[name] = make(name, spec.help, (*self._labels, *spec.labels, *own))

    def show(self, samples: Iterable[Sample]) -> None:
        """Bring what Ray shows up to `samples`."""
        for sample in samples:
            labels = self._labels | dict(sample.labels)
            if isinstance(sample.value, Sequence):
                self._show_counts(sample.name, sample.value, labels)
            else:
                self._series[self._names[sample.name]].set(float(sample.value), labels)

    def _show_counts(self, name: str, counts: Sequence[int], labels: dict[str, str]) -> None:
        for bound, count in cumulative(counts):
            self._series[f"{name}_bucket"].set(float(count), labels | {"le": bound})
        self._series[f"{name}_sum"].set(sum_s(counts), labels)
        self._series[f"{name}_count"].set(float(total(counts)), labels)
