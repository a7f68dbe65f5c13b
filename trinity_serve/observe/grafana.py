"""Grafana dashboards as plain values: rows of panels of queries in, Grafana's JSON out.

Written for schema 39 (Grafana 10 and later). Knows no metric.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Json: TypeAlias = "str | int | float | bool | Sequence[Json] | Mapping[str, Json] | None"

_COLUMNS = 24
_PANEL_HEIGHT = 8
_DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression and how its series are called; ``{{label}}`` stands for a label."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """A time series, or the last values of one."""

    title: str
    unit: str
    """As Grafana names units: s, percentunit, short, ops, Bps, …"""
    queries: tuple[Query, ...]
    description: str = ""
    kind: Literal["timeseries", "stat"] = "timeseries"
    stacked: bool = False
    width: int = 8
    """Of 24 columns."""


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a title."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """All that is on one page. `model_query` lists the models that can be chosen."""

    uid: str
    title: str
    model_query: str
    rows: tuple[Row, ...]
    tags: tuple[str, ...] = field(default=("trinity",))

    @property
    def queries(self) -> Iterator[Query]:
        """Every query of every panel."""
        for row in self.rows:
            for panel in row.panels:
                yield from panel.queries

    def to_json(self) -> dict[str, Json]:
        """Return what Grafana imports."""
        return {
            "uid": self.uid,
            "title": self.title,
            "tags": list(self.tags),
            "schemaVersion": 39,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "10s",
            "time": {"from": "now-30m", "to": "now"},
            "timezone": "",
            "annotations": {"list": []},
            "links": [],
            "templating": {"list": [_datasource_variable(), _model_variable(self.model_query)]},
            "panels": list(_placed(self.rows)),
        }


def _placed(rows: Sequence[Row]) -> Iterator[dict[str, Json]]:
    """Yield rows and panels from left to right and top to bottom, with ids by place."""
    number = x = y = 0
    for row in rows:
        y += _PANEL_HEIGHT if x else 0
        number, x = number + 1, 0
        place: dict[str, Json] = {"h": 1, "w": _COLUMNS, "x": 0, "y": y}
        head: dict[str, Json] = {"id": number, "type": "row", "title": row.title, "panels": []}
        yield head | {"gridPos": place, "collapsed": False}
        y += 1
        for panel in row.panels:
            if x + panel.width > _COLUMNS:
                x, y = 0, y + _PANEL_HEIGHT
            number += 1
            place = {"h": _PANEL_HEIGHT, "w": panel.width, "x": x, "y": y}
            yield {"id": number, "gridPos": place, **_panel(panel)}
            x += panel.width


def _panel(panel: Panel) -> dict[str, Json]:
    custom: dict[str, Json] = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 10}
    custom["stacking"] = {"mode": "normal" if panel.stacked else "none", "group": "A"}
    targets: list[Json] = [
        {
            "refId": chr(ord("A") + place),
            "datasource": _DATASOURCE,
            "expr": query.expr,
            "legendFormat": query.legend or "__auto",
            "range": True,
        }
        for place, query in enumerate(panel.queries)
    ]
    is_stat = panel.kind == "stat"
    options: dict[str, Json] = (
        {"reduceOptions": {"calcs": ["lastNotNull"]}}
        if is_stat
        else {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    )
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATASOURCE,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "custom": {} if is_stat else custom},
            "overrides": [],
        },
        "options": options,
        "targets": targets,
    }


def _datasource_variable() -> dict[str, Json]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "hide": 2}


def _model_variable(query: str) -> dict[str, Json]:
    return {
        "name": "model",
        "label": "Model",
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": query, "refId": "models"},
        "definition": query,
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": False,
        "current": {"text": "All", "value": "$__all"},
    }
