"""What a metric is: its name, kind, unit, labels and meaning, apart from who counts it.

A histogram's series end in ``_bucket``, ``_sum`` and ``_count``, a counter's in ``_total``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    """Prometheus' kinds."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Source(StrEnum):
    """Which process counts it. Those of ranks are on `/metrics` of ingresses too, summed."""

    INGRESS = "ingress"
    RANK = "rank"
    POOL = "pool"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One row of the table in docs/metrics.md."""

    name: str
    """Without the ending that its kind gives it."""
    kind: Kind
    source: Source
    unit: str
    """What is counted or measured."""
    help: str
    labels: tuple[str, ...] = ()
    """Besides `model_name`, which each has but the pool's."""
    bounds: tuple[float, ...] = ()
    """Of a histogram that is fed value by value."""

    @property
    def shown_name(self) -> str:
        """The name that queries use; of a histogram, without the ending."""
        return f"{self.name}_total" if self.kind is Kind.COUNTER else self.name

    @property
    def series(self) -> tuple[str, ...]:
        """The names of all its series."""
        if self.kind is Kind.HISTOGRAM:
            return (f"{self.name}_bucket", f"{self.name}_sum", f"{self.name}_count")
        return (self.shown_name,)


@dataclass(frozen=True, slots=True)
class Sample:
    """One number of one metric now: of a counter its total, of a histogram its counts."""

    name: str
    """Of the spec."""
    value: float | Sequence[int]
    """A histogram's is what `cluster.histogram` counts."""
    labels: Mapping[str, str] = field(default_factory=dict)
