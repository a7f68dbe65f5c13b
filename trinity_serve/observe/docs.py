"""docs/metrics.md: `python -m trinity_serve.observe.docs` writes it from the list of metrics."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cluster.metric_spec import MetricSpec
from cluster.pool_metrics import POOL_SPECS
from trinity_serve.observe.specs import DISPATCH_SPECS, ENGINE_SPECS, INGRESS_SPECS, SHARD_SPECS

PAGE = Path("docs/metrics.md")
_INTRO = """\
# Metrics

Written by `python -m trinity_serve.observe.docs` from `trinity_serve/observe/specs.py`.

- `GET /metrics` of an ingress (inline: of the server) has its own numbers and those of ranks, as
  sums. Every series has the label `model_name`.
- Ray's agents export all of them per process under `ray_` + name, with Ray's labels (`WorkerId`,
  `NodeAddress`, …); numbers of the pool are there alone, and only once there is a pool.
- A histogram `x` is `x_bucket` (label `le`), `x_sum` and `x_count`. What ranks and the pool count
  reaches Ray as gauges of the same names: Ray takes a histogram value by value alone, and shows a
  counter only once it has counted. Queries do not see the difference.
- `vllm_…` are the names that Ray's shipped Serve LLM dashboard asks for.

The dashboard `cluster/deploy/grafana/trinity.json` is built on these; `make observe` shows it.
"""
_SECTIONS = (
    ("Requests, as an ingress sees them", INGRESS_SPECS),
    ("Engine of a rank", ENGINE_SPECS),
    ("Shards, as ranks see them", SHARD_SPECS),
    ("Dispatch of a rank", DISPATCH_SPECS),
    ("Expert pool (on Ray only)", POOL_SPECS),
)


def page() -> str:
    """Return the text of docs/metrics.md."""
    parts = [_INTRO]
    parts += [f"## {title}\n\n{_table(specs)}" for title, specs in _SECTIONS]
    return "\n".join(parts)


def _table(specs: Iterable[MetricSpec]) -> str:
    head = "| name | kind | unit | labels | meaning |\n|---|---|---|---|---|\n"
    return head + "".join(_row(spec) for spec in specs)


def _row(spec: MetricSpec) -> str:
    labels = ", ".join(f"`{label}`" for label in spec.labels)
    return f"| `{spec.shown_name}` | {spec.kind} | {spec.unit} | {labels} | {spec.help} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf8")
