"""`transformers` under the load of `serving_load`, in process: `generate` without a server.

    python -m tests.bench.transformers_peer CHECKPOINT

A process of its own, so that its memory is free again before the next peer is measured. One JSON
line per figure, as `bench_peers` reads them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor

from tests.bench.report import Figure
from tests.bench.serving_load import LONG_PROMPT, Plan
from tests.support.load import random_prompts


class StepTimes:
    """A stopping criterion that stops nothing: it notes when each token was there."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        """Return that no sequence is done."""
        self.times_s.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Generates(Protocol):
    """`generate` as it is used here; its own annotations are not usable."""

    def generate(
        self,
        ids: Tensor,
        *,
        attention_mask: Tensor,
        max_new_tokens: int,
        min_new_tokens: int,
        do_sample: bool,
        stopping_criteria: list[StepTimes],
    ) -> Tensor: ...


def token_times_s(model: Generates, prompts: list[list[int]], max_tokens: int) -> list[float]:
    """Return when each token of the batch was there, in seconds from the start."""
    ids = torch.tensor(prompts)
    steps = StepTimes()
    begun_s = time.perf_counter()
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_tokens,
        min_new_tokens=max_tokens,
        do_sample=False,
        stopping_criteria=[steps],
    )
    return [time_s - begun_s for time_s in steps.times_s]


def measure(model: Generates, plan: Plan) -> Iterator[Figure]:
    """Yield decode and prefill figures, as `measure_endpoint` does."""
    token_times_s(model, random_prompts(1, plan.prompt_tokens, plan.seed), 4)
    for streams in plan.streams:
        rates, firsts = [], []
        for run in range(plan.runs):
            seed = plan.seed + 1000 * streams + run + 1
            prompts = random_prompts(streams, plan.prompt_tokens, seed, plan.vocab_size)
            times = token_times_s(model, prompts, plan.output_tokens)
            rates.append(streams * (len(times) - 1) / (times[-1] - times[0]))
            firsts.append(times[0])
        yield Figure("decode", statistics.median(rates), "tokens/s", {"streams": streams})
        yield Figure("first_token", statistics.median(firsts), "s", {"streams": streams})
    for length in plan.prefills:
        runs = plan.runs if length < LONG_PROMPT else 1
        times_s = []
        for run in range(runs):
            prompts = random_prompts(1, length, plan.seed + 77 * length + run, plan.vocab_size)
            times_s.append(token_times_s(model, prompts, 1)[0])
        time_s = statistics.median(times_s)
        yield Figure("prefill", length / time_s, "tokens/s", {"tokens": length})
        yield Figure("prefill_first_token", time_s, "s", {"tokens": length})


def main(arguments: Sequence[str] | None = None) -> None:
    """Load the checkpoint in bfloat16 and print one line per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=Plan.streams)
    parser.add_argument("--prefills", type=int, nargs="*", default=Plan.prefills)
    parser.add_argument("--runs", type=int, default=Plan.runs)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    from transformers import AfmoeForCausalLM  # noqa: PLC0415 - takes 2 s; --help need not wait

    plan = Plan(
        tuple(options.streams), tuple(options.prefills), runs=options.runs, seed=options.seed
    )
    loaded = AfmoeForCausalLM.from_pretrained(str(options.checkpoint), dtype=torch.bfloat16)
    with torch.inference_mode():
        for figure in measure(cast(Generates, loaded), plan):
            print(json.dumps(asdict(figure)), flush=True)


if __name__ == "__main__":
    main()
