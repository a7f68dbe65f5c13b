"""Ray's dashboard as a user has it: its address and token as the server printed them, its API."""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 20.0
_PRINTED = re.compile(r"Dashboard: (http://[\d.]+:\d+)  \(token: cat (\S+)\)")
_METRIC = re.compile(r"ray_vllm_\w+")
_SUFFIX = re.compile(r"_(sum|count|bucket|total)$")

# JSON as Ray's API answers it.
Object = dict[str, Any]


@dataclass(frozen=True)
class Dashboard:
    """Where it is, and what it asks for."""

    url: str
    token: str

    @classmethod
    def printed_in(cls, log: str) -> Dashboard:
        """Read the line of a server that started Ray itself, and the token it points to."""
        found = _PRINTED.search(log)
        assert found is not None, log
        return cls(found[1], Path(found[2]).read_text().strip())

    def text(self, path: str, **query: str) -> str:
        """Return the body of an answer. Raises `HTTPError`."""
        url = f"{self.url}{path}?{urllib.parse.urlencode(query)}"
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            body: bytes = answer.read()
        return body.decode()

    def applications(self) -> Object:
        """Return Serve's applications by name."""
        found: Object = self._object("/api/serve/applications/")["applications"]
        return found

    def actors(self) -> list[Object]:
        """Return the living actors."""
        query = {"filter_keys": "state", "filter_predicates": "=", "filter_values": "ALIVE"}
        found: list[Object] = self._found("/api/v0/actors", limit="1000", **query)["result"]
        return found

    def log_files(self, node_id: str, glob: str) -> list[str]:
        """Return the names of a node's log files that match."""
        groups = self._found("/api/v0/logs", node_id=node_id, glob=glob)
        return [name for names in groups.values() for name in names]

    def log(self, node_id: str, name: str) -> str:
        """Return the end of a log file."""
        return self.text("/api/v0/logs/file", node_id=node_id, filename=name, lines="1000")

    def _object(self, path: str, **query: str) -> Object:
        found = json.loads(self.text(path, **query))
        assert isinstance(found, dict)
        return found

    def _found(self, path: str, **query: str) -> Object:
        answer = self._object(path, **query)
        assert answer["result"], answer
        found: Object = answer["data"]["result"]
        return found


def metrics_asked_for(rows: Sequence[str]) -> set[str]:
    """Return the metrics, without their kind's suffix, that rows of the Serve LLM dashboard show.

    From the panels that Ray ships for Grafana; a row is named by its title.
    """
    from ray.dashboard.modules.metrics.dashboards.serve_llm_dashboard_panels import (  # noqa: PLC0415
        serve_llm_dashboard_config,
    )

    found = {row.title: row for row in serve_llm_dashboard_config.rows}
    return {
        _SUFFIX.sub("", name)
        for title in rows
        for panel in found[title].panels
        for target in panel.targets
        for name in _METRIC.findall(target.expr)
    }
