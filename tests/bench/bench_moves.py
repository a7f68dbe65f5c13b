"""How long streams pause while experts move and shards come and go.

    python -m tests.bench.bench_moves --model models/tiny

Streams run one after the other on each of several connections while one thing after the other
happens: nothing; copies are added and taken away; shards are added and ended. Told are the gaps
between tokens of each phase; the target is none above 300 ms on `tiny`. Idle machine, or the gaps
are those of others at work. Every stream is held to the tokens of the undisturbed phase.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.bench.report import Figure, Machine, report
from tests.integration.ray_server import RayServer, eventually, python, running
from tests.support.load import LoadResult, random_prompts, run_load
from trinity_serve.cli.admin import AdminClient

MODEL = "moved"
SETTLE_S = 120.0


@dataclass(frozen=True)
class Plan:
    """The load."""

    streams: int = 8
    prompt_tokens: int = 64
    output_tokens: int = 128
    quiet_rounds: int = 3


def config_of(model: str) -> dict[str, object]:
    """Return three shards without replicas, which may move as fast as they can."""
    experts = {"num_shards": 3, "load_report_s": 1.0, "move_bytes_per_s": "1GiB"}
    return {
        "mode": "local",
        "model": {"path": model, "served_name": MODEL},
        "experts": experts,
        "ingress": {"port": 0},
    }


class Bench:
    """A running server, and the tokens its streams have to give."""

    def __init__(self, server: RayServer, plan: Plan) -> None:
        self._url = server.endpoint
        self._admin = AdminClient(server.endpoint)
        self._plan = plan
        self._prompts = random_prompts(plan.streams, plan.prompt_tokens, 1)
        self._wanted: list[list[int]] = []

    def run(self) -> Iterator[Figure]:
        """Yield the figures of all phases."""
        yield from self._phase("quiet", [self._round() for _ in range(self._plan.quiet_rounds)])
        steps: tuple[tuple[str, dict[str, object]], ...] = (
            ("more_copies", {"replicas": 2}),
            ("fewer_copies", {"replicas": 1}),
            ("more_shards", {"shards": 6}),
            ("fewer_shards", {"shards": 3}),
            ("further_copies", {"replica_bytes": 2**22}),
        )
        for name, wanted in steps:
            yield from self._phase(name, self._during(wanted))

    def _round(self) -> LoadResult:
        result = run_load(self._url, MODEL, self._prompts, self._plan.output_tokens)
        failed = [stream.error for stream in result.streams if stream.error is not None]
        assert not failed, failed
        tokens = [stream.token_ids for stream in result.streams]
        self._wanted = self._wanted or tokens
        assert tokens == self._wanted, "a stream gave other tokens"
        return result

    def _during(self, wanted: dict[str, object]) -> list[LoadResult]:
        results = []
        with ThreadPoolExecutor(1) as threads:
            disturbing = threads.submit(self._scale, wanted)
            while not disturbing.done():
                results.append(self._round())
            disturbing.result()
        return results

    def _scale(self, wanted: dict[str, object]) -> None:
        self._admin.scale(wanted)
        began_s = time.monotonic()
        # An operation that only sets a budget is done before its copies are planned.
        eventually(
            lambda: bool(self._admin.status()["settled"]) and time.monotonic() > began_s + 3.0,
            SETTLE_S,
        )

    def _phase(self, name: str, results: Sequence[LoadResult]) -> Iterator[Figure]:
        gaps_s = sorted(gap for each in results for s in each.streams for gap in s.gaps_s)
        labels: dict[str, str | int] = {"phase": name, "streams": self._plan.streams}
        for quantile in (0.5, 0.99, 1.0):
            gap_s = gaps_s[min(int(quantile * len(gaps_s)), len(gaps_s) - 1)]
            yield Figure(f"gap_p{100 * quantile:g}", round(1000 * gap_s, 1), "ms", labels)
        yield Figure("gaps_above_300_ms", sum(gap > 0.3 for gap in gaps_s), "gaps", labels)


def main() -> None:
    """Run it on a server of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--streams", type=int, default=Plan.streams)
    options = parser.parse_args()
    machine = Machine.here()
    command = python(
        "-m", "tests.integration.ray_real_server", json.dumps(config_of(options.model))
    )
    with (
        tempfile.TemporaryDirectory(prefix="t-") as folder,
        running(command, Path(folder)) as server,
    ):
        for figure in Bench(server, Plan(options.streams)).run():
            report(machine, figure)


if __name__ == "__main__":
    main()
