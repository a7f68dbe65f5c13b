"""An engine's statistics as samples: what `/metrics` and Ray show of a rank."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.dispatch_times import ShardTimes
from cluster.histogram import empty_counts
from cluster.metric_spec import Sample
from cluster.metrics import Metric
from trinity_serve.engine.request import EngineStats

_HISTOGRAMS = {
    "queue": "vllm_request_queue_time_seconds",
    "prefill": "vllm_request_prefill_time_seconds",
    "decode": "vllm_request_decode_time_seconds",
    "inter_token": "trinity_inter_token_seconds",
}
"""By the names in `StepWatch.TIMES`."""


def engine_samples(stats: EngineStats) -> Iterator[Sample]:
    """Yield a sample of each metric in `specs.RANK_SPECS`, one per shard with that label."""
    extra = stats.extra
    yield Sample("vllm_num_requests_running", stats.num_running)
    yield Sample("vllm_num_requests_waiting", stats.num_waiting)
    yield Sample("vllm_kv_cache_usage_perc", stats.kv_usage)
    yield Sample("vllm_num_preemptions", stats.num_preemptions)
    yield Sample("vllm_prompt_tokens", stats.prompt_tokens)
    yield Sample("vllm_generation_tokens", stats.generation_tokens)
    yield Sample("vllm_prefix_cache_queries", extra.get("prefix_cache_queries", 0.0))
    yield Sample("vllm_prefix_cache_hits", extra.get("prefix_cache_hits", 0.0))
    yield Sample("trinity_waiting_tokens", stats.num_waiting_tokens)
    yield Sample("trinity_global_blocks_held", extra.get("global_blocks_held", 0.0))
    yield Sample("trinity_sliding_blocks_held", extra.get("sliding_blocks_held", 0.0))
    yield Sample("trinity_engine_steps", stats.num_steps)
    for key, name in _HISTOGRAMS.items():
        yield Sample(name, stats.times.get(key, empty_counts()))
    for metric in Metric:
        yield Sample(f"trinity_{metric}", extra.get(metric, 0.0))
    for shard, numbers in stats.by_shard.items():
        yield from _shard_samples(ShardTimes.of(numbers), {"shard": shard})


def _shard_samples(times: ShardTimes, labels: dict[str, str]) -> Iterator[Sample]:
    yield Sample("trinity_shard_rows", times.rows, labels)
    yield Sample("trinity_shard_experts", times.experts, labels)
    yield Sample("trinity_shard_queue_seconds", times.queue_us / 1e6, labels)
    yield Sample("trinity_shard_compute_seconds", times.compute_us / 1e6, labels)
    yield Sample("trinity_dispatch_seconds", times.latency, labels)
