"""One list of metrics: all that is exported is in it and the other way round; the docs show it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from cluster.dispatch_times import DispatchTimes
from cluster.metric_spec import Kind, MetricSpec
from tests.architecture.source import ROOT
from trinity_serve.api.metrics import ApiMetrics
from trinity_serve.engine.request import EngineStats
from trinity_serve.engine.step_watch import StepWatch
from trinity_serve.observe.docs import page
from trinity_serve.observe.engine_samples import engine_samples
from trinity_serve.observe.specs import INGRESS_SPECS, RANK_SPECS, SPECS


class Mirror:
    """Remembers what it was shown."""

    def __init__(self) -> None:
        self.names: dict[str, tuple[str, ...]] = {}

    def observe(self, name: str, value: float, buckets: Sequence[float]) -> None:
        self.names[name] = ()

    def count(self, name: str, labels: Iterable[str]) -> None:
        self.names[name] = tuple(labels)

    def set(self, name: str, value: float) -> None:
        self.names[name] = ()


def busy_stats() -> EngineStats:
    times = DispatchTimes()
    for shard in (0, 1):
        times.answered(shard, (8, 3), 0.002, (100, 200))
    return EngineStats(times=StepWatch().times(), by_shard=times.snapshot())


def busy_ingress(mirror: Mirror | None = None) -> ApiMetrics:
    metrics = ApiMetrics(CollectorRegistry(), "tiny", mirror)
    metrics.opened()
    metrics.first_token(0.1)
    metrics.ended("stop")
    metrics.done(5, 7, 1.0, 0.1)
    metrics.closed()
    return metrics


def test_no_name_stands_there_twice_and_each_says_what_it_counts() -> None:
    names = [spec.name for spec in SPECS]
    assert len(set(names)) == len(names)
    for spec in SPECS:
        assert re.fullmatch(r"(trinity|vllm)_[a-z0-9_]+[a-z]", spec.name)
        assert not spec.name.endswith("_total")
        assert spec.unit
        assert spec.help.endswith(".") or spec in RANK_SPECS
        assert (spec.kind is Kind.HISTOGRAM) == bool(spec.bounds)


def test_the_metrics_page_of_a_server_has_exactly_the_lists_families() -> None:
    text = busy_ingress().render(busy_stats()).decode()
    found = {
        family.name: (family.type, family.documentation)
        for family in text_string_to_metric_families(text)
    }
    # prometheus_client adds when each counter and histogram of its own began.
    found = {name: what for name, what in found.items() if not name.endswith("_created")}
    assert found == {
        spec.name: (spec.kind.value, spec.help) for spec in (*INGRESS_SPECS, *RANK_SPECS)
    }


def test_every_series_of_the_metrics_page_has_the_lists_name_and_labels() -> None:
    text = busy_ingress().render(busy_stats()).decode()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    found = {name: labels for name, labels in found.items() if not name.endswith("_created")}
    wanted = {
        series: {"model_name", *spec.labels, *({"le"} if series.endswith("_bucket") else ())}
        for spec in (*INGRESS_SPECS, *RANK_SPECS)
        for series in spec.series
    }
    assert found == wanted


def test_the_families_are_there_before_anything_was_counted() -> None:
    text = ApiMetrics(CollectorRegistry(), "tiny").render(EngineStats()).decode()
    families = {family.name for family in text_string_to_metric_families(text)}
    assert {spec.name for spec in RANK_SPECS} <= families


def test_a_ranks_samples_are_those_of_the_list_with_its_labels() -> None:
    found = {sample.name: tuple(sample.labels) for sample in engine_samples(busy_stats())}
    assert found == labels_by_name(RANK_SPECS)


def test_an_ingress_mirrors_all_of_the_list() -> None:
    mirror = Mirror()
    busy_ingress(mirror)
    assert mirror.names == labels_by_name(INGRESS_SPECS)


def labels_by_name(specs: Iterable[MetricSpec]) -> dict[str, tuple[str, ...]]:
    return {spec.name: spec.labels for spec in specs}


def test_the_page_of_the_docs_is_the_one_that_the_list_gives() -> None:
    written = (ROOT / "docs/metrics.md").read_text(encoding="utf8")
    assert written == page(), "python -m trinity_serve.observe.docs writes it anew"


def test_the_page_names_every_metric_once() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", page(), re.M)
    assert sorted(rows) == sorted(spec.shown_name for spec in SPECS)
