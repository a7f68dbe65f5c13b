"""Every query of a dashboard, ours and Ray's, names a metric that is exported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

import promql_parser
import pytest
from ray.dashboard.modules.metrics.dashboards.serve_llm_dashboard_panels import (
    serve_llm_dashboard_config,
)

from tests.architecture.source import ROOT
from trinity_serve.observe import dashboard
from trinity_serve.observe.grafana import Query
from trinity_serve.observe.specs import SPECS

SERIES = {
    f"{dashboard.PREFIX}{series}": {*spec.labels, "le"} for spec in SPECS for series in spec.series
}
RAYS_LABELS = {"model_name", "WorkerId"}
VARIABLES = {"$__rate_interval": "5m", "$interval": "5m"}
WITHOUT_MEANING = {
    "num_requests_swapped": "nothing is swapped out: what is preempted is computed again",
    "nixl_": "KV blocks do not travel between processes",
    "kv_offload_": "KV blocks are not offloaded to other memory",
    "external_prefix_cache_": "the prefix cache lives in the rank; there is no other",
}
"""Names that Ray's dashboard asks for and that nothing here could fill, and why."""


def parsed(expr: str) -> promql_parser.Expr:
    for variable, value in VARIABLES.items():
        expr = expr.replace(variable, value)
    return promql_parser.parse(expr)


def selectors(expr: object) -> Iterator[promql_parser.VectorSelector]:
    """Every selector below an expression."""
    if isinstance(expr, promql_parser.VectorSelector):
        yield expr
        return
    for name in ("expr", "lhs", "rhs", "param", "vector_selector", "vs"):
        if (part := getattr(expr, name, None)) is not None:
            yield from selectors(part)
    for part in getattr(expr, "args", None) or ():
        yield from selectors(part)


QUERIES = list(dashboard.DASHBOARD.queries)


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.expr)
def test_each_query_parses_and_names_series_that_exist(query: Query) -> None:
    found = list(selectors(parsed(query.expr)))
    assert found
    for selector in found:
        assert selector.name in SERIES
        labels = {matcher.name for matcher in selector.matchers.matchers}
        assert labels <= RAYS_LABELS


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.expr)
def test_each_label_that_a_query_groups_or_shows_by_is_one_of_the_series(query: Query) -> None:
    used = set(re.findall(r"{{(\w+)}}", query.legend))
    for labels in re.findall(r" by \(([^)]*)\)", query.expr):
        used |= set(re.split(r",\s*", labels))
    for selector in selectors(parsed(query.expr)):
        assert selector.name
        assert used <= SERIES[selector.name] | RAYS_LABELS


def test_the_dashboard_shows_every_metric_but_what_others_tell_better() -> None:
    shown = {selector.name for query in QUERIES for selector in selectors(parsed(query.expr))}
    hidden = {
        spec.name
        for spec in SPECS
        if not any(f"{dashboard.PREFIX}{series}" in shown for series in spec.series)
    }
    assert hidden == {
        "vllm_request_prompt_tokens",
        "vllm_request_generation_tokens",
        "vllm_request_time_per_output_token_seconds",
        "trinity_placement_epoch",
        "trinity_placement_counter",
        "trinity_copies_moved_for_load",
    }


def test_the_file_is_the_one_that_the_module_writes() -> None:
    path = ROOT / dashboard.PATH
    text = path.read_text(encoding="utf8")
    assert text == dashboard.text(), "python -m trinity_serve.observe.dashboard writes it anew"


def test_panels_have_their_own_ids_and_do_not_overlap() -> None:
    panels = json.loads(dashboard.text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells


def rays_queries() -> Iterable[str]:
    for row in serve_llm_dashboard_config.rows:
        for panel in row.panels:
            for target in panel.targets:
                filters = 'ray_io_cluster=~".*"'
                yield target.expr.format(global_filters=filters)


def rays_names() -> set[str]:
    """The series of models' own numbers that Ray's Serve LLM dashboard asks for."""
    text = "\n".join(rays_queries())
    return set(re.findall(r"\bray_vllm_\w+", text))


def is_without_meaning(name: str) -> bool:
    return name.removeprefix("ray_vllm_").startswith(tuple(WITHOUT_MEANING))


def test_each_query_of_rays_serve_llm_dashboard_names_a_metric_of_ours_or_makes_no_sense() -> None:
    missing = {name for name in rays_names() - SERIES.keys() if not is_without_meaning(name)}
    assert not missing


def test_no_reason_stands_for_a_name_that_we_have_or_that_ray_does_not_ask_for() -> None:
    for beginning in WITHOUT_MEANING:
        asked = {name for name in rays_names() if name.startswith(f"ray_vllm_{beginning}")}
        assert asked
        assert not asked & SERIES.keys()


def test_each_name_of_vllms_that_we_export_is_asked_for_by_ray() -> None:
    ours = {spec for spec in SPECS if spec.name.startswith("vllm_")}
    unasked = {
        spec.name
        for spec in ours
        if not any(f"ray_{series}" in rays_names() for series in spec.series)
    }
    assert unasked == {"vllm_num_preemptions"}  # vLLM's own name, on no panel of Ray's
