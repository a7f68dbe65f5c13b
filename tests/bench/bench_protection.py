"""What hedging costs when nothing fails, and what it saves when a shard is ten times slower.

   python -m tests.bench.bench_protection --model tiny --streams 16

Two shard processes that each hold every expert, one rank with hedging and one without (share 0),
their runs in turn (A B B A ...): greedy, fresh prompts, the same number of tokens of every stream.
First with both shards well: `protection` is the rate while all streams decode, `protection_loss`
one minus the rate with hedging over that without, as the median over pairs of runs, and
`protection_cpu_loss` the same of the rank's processor time per run, which hardly depends on what
else the machine does. Then one shard has a tenth of its time (stopped for 90 ms of every 100):
`protection_gap` are the times between two tokens of a stream. Each rank keeps what it has learnt
about its shards' pace.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cluster.metrics import Metric
from tests.bench.bench_serving import checkpoints
from tests.bench.report import Figure, Machine, report
from tests.support.load import random_prompts
from tests.support.replicas import ReplicaRank, rank_over, two_full_shards
from tests.support.shards import ShardProcess
from trinity_serve.config import ServeConfig, parse_serve_args
from trinity_serve.engine.request import GenerationRequest, SamplingParams
from trinity_serve.synthetic import PRESETS
from trinity_serve.threads import num_cores

PROMPT_TOKENS = 64
SHARES = {"on": 0.05, "off": 0.0}
STOPPED_S, RUNNING_S = 0.09, 0.01


@dataclass
class Run:
    """One load: when each stream's tokens came, by request id."""

    times_s: dict[str, list[float]] = field(default_factory=dict)
    cpu_s: float = 0.0
    """Of the rank."""

    @property
    def tokens_per_s(self) -> float:
        """Rate over all streams from the last first token on: while all of them decode."""
        from_s = max(times[0] for times in self.times_s.values())
        later = [at_s for times in self.times_s.values() for at_s in times if at_s > from_s]
        return len(later) / (max(later) - from_s)

    @property
    def gaps_s(self) -> list[float]:
        """Times between two tokens of a stream."""
        pairs = (itertools.pairwise(times) for times in self.times_s.values())
        return [after - before for each in pairs for before, after in each]


def run(rank: ReplicaRank, prompts: Sequence[Sequence[int]], num_tokens: int) -> Run:
    """Generate from all prompts at once."""
    params = SamplingParams(num_tokens, seed=0, temperature=0.0, ignore_eos=True)
    seen = Run({f"r{number}": [] for number in range(len(prompts))})
    for name, prompt in zip(seen.times_s, prompts, strict=True):
        rank.engine.submit(GenerationRequest(name, 0, tuple(prompt), params))
    begun_s = time.process_time()
    while rank.engine.has_work:
        for event in rank.engine.step(time.monotonic()):
            if event.error is not None:
                raise event.error
            if event.token_id is not None:
                seen.times_s[event.request_id].append(time.monotonic())
    seen.cpu_s = time.process_time() - begun_s
    return seen


def measure(
    ranks: Mapping[str, ReplicaRank], streams: int, rounds: int, num_tokens: int
) -> dict[str, list[Run]]:
    """Return each rank's runs, in turn; the first round only warms up."""
    runs: dict[str, list[Run]] = {name: [] for name in ranks}
    for number in range(rounds + 1):
        # A B B A: what the machine does meanwhile favours neither.
        in_turn = list(ranks.items())[:: -1 if number % 2 else 1]
        for position, (name, rank) in enumerate(in_turn):
            seed = 1 + number * len(ranks) + position
            prompts = random_prompts(streams, PROMPT_TOKENS, seed, rank.engine.runner.vocab_size)
            runs[name].append(run(rank, prompts, num_tokens))
    return {name: each[1:] for name, each in runs.items()}


@contextmanager
def slowed(shard: ShardProcess) -> Iterator[None]:
    """Give the process a tenth of its time."""
    stop = threading.Event()

    def throttle() -> None:
        while not stop.is_set():
            shard.signal(signal.SIGSTOP)
            time.sleep(STOPPED_S)
            shard.signal(signal.SIGCONT)
            time.sleep(RUNNING_S)

    thread = threading.Thread(target=throttle)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def cost_figures(runs: Mapping[str, Sequence[Run]]) -> Iterator[Figure]:
    """Yield the rates of both, and what hedging loses, run by run."""
    rates = {name: [each.tokens_per_s for each in of_one] for name, of_one in runs.items()}
    for name, each in rates.items():
        yield Figure("protection", statistics.median(each), "tokens/s", {"hedging": name})
    losses = [1.0 - on / off for on, off in zip(rates["on"], rates["off"], strict=True)]
    yield Figure("protection_loss", statistics.median(losses), "1")
    cpu_s = {name: [each.cpu_s for each in of_one] for name, of_one in runs.items()}
    losses = [1.0 - off / on for on, off in zip(cpu_s["on"], cpu_s["off"], strict=True)]
    yield Figure("protection_cpu_loss", statistics.median(losses), "1")


def gap_figures(runs: Mapping[str, Sequence[Run]], shards: str) -> Iterator[Figure]:
    """Yield median, 99th percentile and longest gap of both."""
    for name, of_one in runs.items():
        gaps_s = [gap_s for each in of_one for gap_s in each.gaps_s]
        for quantile in (0.5, 0.99, 1.0):
            labels = {"hedging": name, "shards": shards, "percentile": f"{100 * quantile:g}"}
            yield Figure("protection_gap", float(np.quantile(gaps_s, quantile)), "s", labels)


def hedge_figures(ranks: Mapping[str, ReplicaRank]) -> Iterator[Figure]:
    """Yield what the rank that hedges did."""
    metrics = ranks["on"].metrics
    for metric in (Metric.DISPATCH_CALLS, Metric.HEDGED_CALLS, Metric.HEDGES_WON):
        yield Figure("protection_calls", metrics[metric], "1", {"counter": str(metric)})


def serve_config(path: Path, streams: int, share: float) -> ServeConfig:
    """Return a rank's configuration."""
    return parse_serve_args(
        {
            "mode": "local",
            "model": {"path": str(path)},
            "experts": {"num_shards": 2, "num_replicas": 2, "hedge_share": share},
            "attention": {"kv_memory_bytes": "512MiB", "max_num_seqs": streams},
        }
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", choices=sorted(PRESETS))
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept between runs")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args(arguments)
    machine = Machine.here()
    what: dict[str, str | int] = {"model": options.model, "streams": options.streams}
    load = (options.streams, options.rounds, options.tokens)
    with ExitStack() as stack:
        [path] = stack.enter_context(checkpoints([options.model], options.folder))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p-")))
        threads = max(1, num_cores() // 2)
        shards = stack.enter_context(two_full_shards(path, folder, threads))
        ranks = {
            name: stack.enter_context(
                rank_over(shards, serve_config(path, options.streams, share), number)
            )
            for number, (name, share) in enumerate(SHARES.items())
        }
        well = measure(ranks, *load)
        for figure in (*cost_figures(well), *gap_figures(well, "well"), *hedge_figures(ranks)):
            report(machine, figure, **what)
        with slowed(shards[0]):
            slow = measure(ranks, *load)
        for figure in (*gap_figures(slow, "one slow"), *hedge_figures(ranks)):
            report(machine, figure, **what)


if __name__ == "__main__":
    main()
