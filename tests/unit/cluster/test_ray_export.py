"""Samples reach Ray as gauges under the names of Prometheus, with every label."""

from __future__ import annotations

from cluster.histogram import BOUNDS_S, add_time, empty_counts
from cluster.metric_spec import Kind, MetricSpec, Sample, Source
from cluster.ray_export import RayExport, Series

SPECS = (
    MetricSpec("seen", Kind.COUNTER, Source.RANK, "things", "Things seen.", ("shard",)),
    MetricSpec("held", Kind.GAUGE, Source.RANK, "things", "Things held."),
    MetricSpec("took", Kind.HISTOGRAM, Source.RANK, "seconds", "Times.", bounds=BOUNDS_S),
)


class FakeSeries:
    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.shown: list[tuple[float, dict[str, str]]] = []

    def set(self, value: float, labels: dict[str, str]) -> None:
        assert set(labels) == set(self.labels)
        self.shown.append((value, labels))


class FakeRay:
    def __init__(self) -> None:
        self.series: dict[str, FakeSeries] = {}

    def make(self, name: str, text: str, labels: tuple[str, ...]) -> Series:
        return self.series.setdefault(name, FakeSeries(labels))


def exported() -> tuple[FakeRay, RayExport]:
    ray = FakeRay()
    return ray, RayExport(SPECS, {"model_name": "m"}, ray.make)


def test_every_series_of_the_specs_is_made() -> None:
    ray, _ = exported()
    assert ray.series.keys() == {name for spec in SPECS for name in spec.series}


def test_a_counter_shows_its_total_also_while_that_is_zero() -> None:
    ray, export = exported()
    for value in (0, 3, 3):
        export.show([Sample("seen", value, {"shard": "1"})])
    export.show([Sample("seen", 7, {"shard": "2"})])
    first, other = ({"model_name": "m", "shard": shard} for shard in "12")
    assert ray.series["seen_total"].shown == [
        (0.0, first),
        (3.0, first),
        (3.0, first),
        (7.0, other),
    ]


def test_a_gauge_is_set_also_to_what_it_was() -> None:
    ray, export = exported()
    export.show([Sample("held", 2)])
    export.show([Sample("held", 2)])
    assert ray.series["held"].shown == [(2.0, {"model_name": "m"})] * 2


def test_a_histogram_is_shown_as_prometheus_would() -> None:
    ray, export = exported()
    counts = empty_counts()
    add_time(counts, 0.0001)
    add_time(counts, 1.0)
    export.show([Sample("took", counts)])
    buckets = {labels["le"]: value for value, labels in ray.series["took_bucket"].shown}
    assert len(buckets) == len(BOUNDS_S) + 1
    assert (buckets["6.4e-05"], buckets["0.000128"], buckets["+Inf"]) == (0.0, 1.0, 2.0)
    assert ray.series["took_count"].shown == [(2.0, {"model_name": "m"})]
    assert ray.series["took_sum"].shown == [(1.0001, {"model_name": "m"})]
