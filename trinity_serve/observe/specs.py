"""Every metric that is exported, in one list: docs/metrics.md, /metrics and Ray follow from it."""

from __future__ import annotations

from cluster.histogram import BOUNDS_S
from cluster.metric_spec import Kind, MetricSpec, Source
from cluster.metrics import HELP, Metric
from cluster.pool_metrics import POOL_SPECS

SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)
_UNITS = {Metric.DISPATCH_CALLS: "calls", Metric.DISPATCH_ROWS: "rows"}


def _times(name: str, text: str, *labels: str) -> MetricSpec:
    return MetricSpec(name, Kind.HISTOGRAM, Source.RANK, "seconds", text, labels, BOUNDS_S)


def _counter(name: str, unit: str, text: str, *labels: str) -> MetricSpec:
    return MetricSpec(name, Kind.COUNTER, Source.RANK, unit, text, labels)


def _gauge(name: str, unit: str, text: str) -> MetricSpec:
    return MetricSpec(name, Kind.GAUGE, Source.RANK, unit, text)


def _seen(name: str, unit: str, text: str) -> MetricSpec:
    """A histogram that an ingress fills value by value."""
    bounds = TOKENS if unit == "tokens" else SECONDS
    return MetricSpec(name, Kind.HISTOGRAM, Source.INGRESS, unit, text, bounds=bounds)


TIME_TO_FIRST_TOKEN = _seen(
    "vllm_time_to_first_token_seconds", "seconds", "From the body's arrival to the first token."
)
TIME_PER_TOKEN = _seen(
    "vllm_request_time_per_output_token_seconds",
    "seconds",
    "Mean time between tokens of a request.",
)
LATENCY = _seen(
    "vllm_e2e_request_latency_seconds", "seconds", "From the body's arrival to the last token."
)
PROMPT_TOKENS = _seen("vllm_request_prompt_tokens", "tokens", "Prompt tokens of a request.")
MADE_TOKENS = _seen("vllm_request_generation_tokens", "tokens", "Tokens made for a request.")
OPEN_REQUESTS = MetricSpec(
    "trinity_open_requests", Kind.GAUGE, Source.INGRESS, "requests", "Generations that are open."
)
SUCCESS = MetricSpec(
    "vllm_request_success",
    Kind.COUNTER,
    Source.INGRESS,
    "choices",
    "Choices by the reason they ended: stop, length, abort, error.",
    ("finished_reason",),
)
INGRESS_SPECS = (
    TIME_TO_FIRST_TOKEN,
    TIME_PER_TOKEN,
    LATENCY,
    PROMPT_TOKENS,
    MADE_TOKENS,
    OPEN_REQUESTS,
    SUCCESS,
)

ENGINE_SPECS = (
    _gauge("vllm_num_requests_running", "choices", "Choices in a step."),
    _gauge("vllm_num_requests_waiting", "choices", "Choices queued."),
    _gauge("vllm_kv_cache_usage_perc", "share", "Of the fuller KV pool in use, 0 to 1."),
    _gauge("trinity_waiting_tokens", "tokens", "Tokens of the choices that are queued."),
    _gauge("trinity_global_blocks_held", "blocks", "KV blocks in use, layers that see everything."),
    _gauge("trinity_sliding_blocks_held", "blocks", "KV blocks in use, layers with a window."),
    _counter("vllm_num_preemptions", "choices", "Choices that lost their KV and are recomputed."),
    _counter("vllm_prompt_tokens", "tokens", "Prompt tokens of choices that got a first token."),
    _counter("vllm_generation_tokens", "tokens", "Tokens made."),
    _counter("vllm_prefix_cache_queries", "tokens", "Context tokens looked up in the cache."),
    _counter("vllm_prefix_cache_hits", "tokens", "Context tokens found in the cache."),
    _counter("trinity_engine_steps", "steps", "Steps of the engine."),
    _times("vllm_request_queue_time_seconds", "From a rank's queue to the first rows in a step."),
    _times("vllm_request_prefill_time_seconds", "From there to the first token."),
    _times("vllm_request_decode_time_seconds", "From the first token to the end."),
    _times("trinity_inter_token_seconds", "Between steps, for each choice that decodes."),
)
SHARD_SPECS = (
    _counter("trinity_shard_rows", "rows", "(token, expert) rows that came back.", "shard"),
    _counter("trinity_shard_experts", "experts", "Experts that calls asked for.", "shard"),
    _counter("trinity_shard_queue_seconds", "seconds", "Calls' time in a shard's queue.", "shard"),
    _counter("trinity_shard_compute_seconds", "seconds", "Time a shard computed.", "shard"),
    _times("trinity_dispatch_seconds", "From sending an expert call to its reply.", "shard"),
)
DISPATCH_SPECS = tuple(
    _counter(f"trinity_{metric}", _UNITS.get(metric, "events"), HELP[metric]) for metric in Metric
)

RANK_SPECS = (*ENGINE_SPECS, *SHARD_SPECS, *DISPATCH_SPECS)
SPECS = (*INGRESS_SPECS, *RANK_SPECS, *POOL_SPECS)
BY_NAME = {spec.name: spec for spec in SPECS}
