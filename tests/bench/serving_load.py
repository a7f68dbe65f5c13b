"""The load that servers are compared by, on any OpenAI endpoint.

Decode: prompts of 64 random tokens, 64 tokens out, greedy, end-of-text ignored, at several numbers
of streams. Prefill: one prompt to its first token. Medians of several runs, after one to warm up.
"""

from __future__ import annotations

import json
import statistics
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.bench.report import Figure
from tests.support.load import LoadResult, random_prompts, run_load

PREFILL_DEADLINE_S = 900.0
LONG_PROMPT = 8000
"""Longer ones are run once: they take minutes on slow servers."""


@dataclass(frozen=True)
class Plan:
    """How much of the load is run."""

    streams: tuple[int, ...] = (1, 4, 16, 32, 64)
    prefills: tuple[int, ...] = (1000, 8000, 32_000)
    prompt_tokens: int = 64
    output_tokens: int = 64
    runs: int = 3
    vocab_size: int = 4096
    seed: int = 0
    """Another seed gives other prompts: none of them is in a prefix cache yet."""


def served_model(url: str) -> str:
    """Return the name of the first model that an endpoint serves."""
    with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as answer:
        return str(json.load(answer)["data"][0]["id"])


def first_answer_s(url: str, model: str, plan: Plan) -> float:
    """Return when the first token of one short request came, on the monotonic clock."""
    prompts = random_prompts(1, plan.prompt_tokens, plan.seed, plan.vocab_size)
    return run_load(url, model, prompts, 4).streams[0].token_times_s[0]


def measure_endpoint(url: str, model: str, plan: Plan) -> Iterator[Figure]:
    """Yield decode and prefill figures of a server that has answered before."""
    for streams in plan.streams:
        results = [decode(url, model, streams, plan, run) for run in range(plan.runs)]
        labels = {"streams": streams}

        def median(of: Callable[[LoadResult], float], results: list[LoadResult] = results) -> float:
            return statistics.median(map(of, results))

        yield Figure("decode", median(lambda r: r.decode_tokens_per_s), "tokens/s", labels)
        yield Figure("first_token", median(lambda r: r.first_token_s), "s", labels)
        yield Figure("gap_p50", median(lambda r: r.gap_s(0.5)), "s", labels)
        yield Figure("gap_p99", median(lambda r: r.gap_s(0.99)), "s", labels)
        yield Figure("gap_max", max(r.gap_s(1.0) for r in results), "s", labels)
        yield Figure("load_cpu", median(lambda r: r.cpu_s / r.wall_s), "cores", labels)
    for length in plan.prefills:
        runs = plan.runs if length <= LONG_PROMPT else 1
        time_s = statistics.median(prefill_s(url, model, length, plan, run) for run in range(runs))
        yield Figure("prefill", length / time_s, "tokens/s", {"tokens": length})
        yield Figure("prefill_first_token", time_s, "s", {"tokens": length})


def decode(url: str, model: str, streams: int, plan: Plan, run: int) -> LoadResult:
    """Run the decode load once."""
    return run_load(url, model, decode_prompts(streams, plan, run), plan.output_tokens)


def decode_prompts(streams: int, plan: Plan, run: int) -> list[list[int]]:
    """Return the prompts of a run of the decode load."""
    seed = plan.seed + 1000 * streams + run + 1
    return random_prompts(streams, plan.prompt_tokens, seed, plan.vocab_size)


def prefill_s(url: str, model: str, length: int, plan: Plan, run: int) -> float:
    """Return the time to the first token of one prompt."""
    prompts = random_prompts(1, length, plan.seed + 77 * length + run, plan.vocab_size)
    return run_load(url, model, prompts, 1, PREFILL_DEADLINE_S).first_token_s
