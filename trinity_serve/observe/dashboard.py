"""Trinity's own Grafana dashboard; `python -m trinity_serve.observe.dashboard` writes its file.

Names are those that Ray exports (`ray_…`). A server without Ray is scraped under the same ones:
`trinity observe` renames, and docs/operations.md shows how.
"""

from __future__ import annotations

import json
from pathlib import Path

from cluster.metric_spec import Kind, Source
from cluster.metrics import Metric
from trinity_serve.observe.grafana import Dashboard, Panel, Query, Row
from trinity_serve.observe.specs import BY_NAME, DISPATCH_SPECS

PATH = Path("cluster/deploy/grafana/trinity.json")
PREFIX = "ray_"
_RATE = "[$__rate_interval]"
_TRAFFIC = {f"trinity_{metric}" for metric in (Metric.DISPATCH_CALLS, Metric.DISPATCH_ROWS)}


def series(name: str, ending: str = "") -> str:
    """Return the selector of a metric's series for the chosen model."""
    spec = BY_NAME[name]
    ending = ending or ("_total" if spec.kind is Kind.COUNTER else "")
    # The pool serves one application, whatever its model is called.
    labels = "" if spec.source is Source.POOL else '{model_name=~"$model"}'
    return f"{PREFIX}{name}{ending}{labels}"


def rate(name: str, by: str = "", ending: str = "") -> str:
    """Return a counter's rate per second, summed by these labels."""
    return f"sum{_by(by)}(rate({series(name, ending)}{_RATE}))"


def total(name: str, by: str = "") -> str:
    """Return a gauge's sum by these labels."""
    return f"sum{_by(by)}({series(name)})"


def quantile(name: str, share: float, by: str = "") -> str:
    """Return a histogram's quantile by these labels."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share:g}, {rate(name, labels, '_bucket')})"


def _by(labels: str) -> str:
    return f" by ({labels}) " if labels else ""


def _quantiles(title: str, name: str, text: str = "") -> Panel:
    queries = tuple(Query(quantile(name, share), f"p{share * 100:g}") for share in (0.5, 0.9, 0.99))
    return Panel(title, "s", queries, text or BY_NAME[name].help)


def _by_shard(share: float) -> Panel:
    name = "trinity_dispatch_seconds"
    query = Query(quantile(name, share, "shard"), "shard {{shard}}")
    return Panel(f"Dispatch latency by shard, p{share * 100:g}", "s", (query,), BY_NAME[name].help)


def _hit_ratio() -> str:
    hits, queries = rate("vllm_prefix_cache_hits"), rate("vllm_prefix_cache_queries")
    return f"{hits} / ({queries} > 0)"


REQUESTS = Row(
    "Requests",
    (
        Panel(
            "Tokens per second",
            "short",
            (
                Query(rate("vllm_generation_tokens"), "made"),
                Query(rate("vllm_prompt_tokens"), "prompt"),
            ),
        ),
        Panel(
            "Open, running and waiting",
            "short",
            (
                Query(total("trinity_open_requests"), "open"),
                Query(total("vllm_num_requests_running"), "running"),
                Query(total("vllm_num_requests_waiting"), "waiting"),
            ),
            "Requests open in ingresses; choices that run and wait in ranks.",
        ),
        Panel(
            "Ends by reason",
            "ops",
            (Query(rate("vllm_request_success", "finished_reason"), "{{finished_reason}}"),),
            stacked=True,
        ),
        _quantiles("Time to first token", "vllm_time_to_first_token_seconds"),
        _quantiles("Between tokens", "trinity_inter_token_seconds"),
        _quantiles("Whole request", "vllm_e2e_request_latency_seconds"),
        _quantiles("In the queue", "vllm_request_queue_time_seconds"),
        _quantiles("Prefill", "vllm_request_prefill_time_seconds"),
        _quantiles("Decode", "vllm_request_decode_time_seconds"),
    ),
)
RANKS = Row(
    "Attention ranks",
    (
        Panel(
            "KV in use by rank",
            "percentunit",
            (Query(f"max by (WorkerId) ({series('vllm_kv_cache_usage_perc')})", "{{WorkerId}}"),),
            BY_NAME["vllm_kv_cache_usage_perc"].help,
        ),
        Panel(
            "Queue by rank",
            "short",
            (
                Query(total("vllm_num_requests_waiting", "WorkerId"), "choices {{WorkerId}}"),
                Query(total("trinity_waiting_tokens", "WorkerId"), "tokens {{WorkerId}}"),
            ),
        ),
        Panel("Prefix hit ratio", "percentunit", (Query(_hit_ratio(), "hits"),)),
        Panel("Preemptions", "ops", (Query(rate("vllm_num_preemptions"), "preempted"),)),
        Panel(
            "Steps per second by rank",
            "ops",
            (Query(rate("trinity_engine_steps", "WorkerId"), "{{WorkerId}}"),),
        ),
        Panel(
            "KV blocks held",
            "short",
            (
                Query(total("trinity_global_blocks_held"), "global"),
                Query(total("trinity_sliding_blocks_held"), "sliding"),
            ),
        ),
    ),
)
EXPERTS = Row(
    "Experts",
    (
        Panel(
            "Load: rows per second by shard",
            "short",
            (Query(rate("trinity_shard_rows", "shard"), "shard {{shard}}"),),
            stacked=True,
        ),
        Panel(
            "Balance: busiest over mean",
            "short",
            (
                Query(total("trinity_balance"), "by layer, lately"),
                Query(
                    "max({0}) / avg({0})".format(rate("trinity_shard_rows", "shard")),
                    "over all layers, now",
                ),
            ),
            "1 is even. By layer is what a step waits for: its busiest shard.",
        ),
        Panel(
            "Experts read per step",
            "short",
            (
                Query(
                    f"{rate('trinity_shard_experts')} / ({rate('trinity_engine_steps')} > 0)",
                    "all layers",
                ),
            ),
            "(layer, expert) pairs that a step's rows went to: the weights that it reads.",
        ),
        _by_shard(0.5),
        _by_shard(0.99),
        Panel(
            "Shards' time: computing and queued",
            "percentunit",
            (
                Query(rate("trinity_shard_compute_seconds", "shard"), "computes {{shard}}"),
                Query(rate("trinity_shard_queue_seconds", "shard"), "queued {{shard}}"),
            ),
            "Seconds per second, by the shards' own clocks; the rest of the latency is the way.",
        ),
    ),
)
POOL = Row(
    "Pool",
    (
        Panel(
            "Coverage",
            "short",
            (Query(total("trinity_experts_uncovered"), "experts uncovered"),),
            BY_NAME["trinity_experts_uncovered"].help,
        ),
        Panel(
            "Shards by state",
            "short",
            (
                Query(total("trinity_shards", "state"), "{{state}}"),
                Query(total("trinity_shards_wanted"), "wanted"),
                Query(total("trinity_ranks"), "ranks"),
            ),
        ),
        Panel(
            "Failures and starts by shard",
            "short",
            (
                Query(f"increase({series('trinity_shard_failures')}{_RATE})", "failed {{shard}}"),
                Query(f"increase({series('trinity_shard_starts')}{_RATE})", "started {{shard}}"),
            ),
        ),
        Panel(
            "Copies moved and left to move",
            "short",
            (
                Query(f"increase({series('trinity_copies_moved')}{_RATE})", "moved"),
                Query(total("trinity_copies_to_load"), "to load"),
                Query(total("trinity_copies_to_free"), "to free"),
            ),
        ),
        Panel("Bytes moved", "Bps", (Query(rate("trinity_bytes_moved"), "moved"),)),
        Panel(
            "Change of scale",
            "short",
            (Query(f"{total('trinity_scale_operation', 'phase')} > 0", "{{phase}}"),),
            BY_NAME["trinity_scale_operation"].help,
        ),
        Panel(
            "Retries, hedges and losses",
            "ops",
            tuple(
                Query(rate(spec.name), spec.name.removeprefix("trinity_").replace("_", " "))
                for spec in DISPATCH_SPECS
                if spec.name not in _TRAFFIC
            ),
            "Of ranks: what went wrong on the way to experts, and what was done about it.",
            width=16,
        ),
        Panel(
            "Expert calls",
            "ops",
            tuple(Query(rate(name), name.removeprefix("trinity_")) for name in sorted(_TRAFFIC)),
        ),
    ),
)
DASHBOARD = Dashboard(
    "trinity-serve",
    "Trinity Serve",
    f"label_values({PREFIX}vllm_num_requests_running, model_name)",
    (REQUESTS, RANKS, EXPERTS, POOL),
)


def text() -> str:
    """Return the dashboard's file."""
    return json.dumps(DASHBOARD.to_json(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text(text(), encoding="utf8")
