"""What overload costs those who were accepted: ten times the clients that the server has seats for.

    python -m tests.bench.bench_overload --model models/demo --mode local

As many clients as there are seats, then ten times as many, each asking again and again for a fixed
time; a refused client waits as long as `Retry-After` says. Told are goodput (tokens per second of
streams that ended well), the gaps between tokens of accepted streams, how fast a refusal comes, and
the ratios of both loads, whose targets are: gap p99 at most 1.5, goodput at least 0.9. The load
generator shares the machine: `load_cpu` is what it took. Idle machine, or the ratios say nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import orjson

from tests.bench.report import Figure, Machine, report
from tests.bench.serving_load import served_model
from tests.support.http_stream import BrokenStreamError, post
from tests.support.load import completion_body, random_prompts
from tests.support.server import trinity_server

REFUSED = (429, 503)
MAX_PAUSE_S = 5.0


@dataclass(frozen=True)
class OverloadPlan:
    """The load."""

    seats: int = 16
    queue: int = 16
    factor: int = 10
    for_s: float = 20.0
    prompt_tokens: int = 64
    output_tokens: int = 64
    vocab_size: int = 4096


@dataclass
class Seen:
    """What all clients of one load saw."""

    tokens: int = 0
    gaps_s: list[float] = field(default_factory=list)
    refusals_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    cpu_s: float = 0.0
    wall_s: float = 0.0

    def gap_s(self, quantile: float) -> float:
        """Return a quantile of the gaps between tokens."""
        return float(np.quantile(self.gaps_s, quantile, method="higher"))

    @property
    def goodput(self) -> float:
        """Tokens per second of streams that ended well."""
        return self.tokens / self.wall_s


async def ask_once(url: str, body: bytes, seen: Seen) -> float:
    """Run one stream; return how long the client has to wait before it may ask again."""
    began_s = time.monotonic()
    times: list[float] = []
    async with post(url, "/v1/completions", body) as answer:
        if answer.status in REFUSED:
            seen.refusals_s.append(time.monotonic() - began_s)
            return min(MAX_PAUSE_S, float(answer.headers.get("retry-after", "1")))
        async for data in answer.events():
            if data == b"[DONE]":
                seen.tokens += len(times)
                seen.gaps_s += np.diff(times).tolist()
                return 0.0
            event = orjson.loads(data)
            if "error" in event:
                raise BrokenStreamError(str(event["error"]))
            ids = sum(len(choice.get("token_ids") or []) for choice in event["choices"])
            times += [time.monotonic()] * ids
    raise BrokenStreamError(f"status {answer.status}, or no [DONE]")


async def ask_on(url: str, bodies: Iterator[bytes], until_s: float, seen: Seen) -> None:
    """Be one client: ask until it is time; what was asked then is still read to its end."""
    while time.monotonic() < until_s:
        try:
            pause_s = await ask_once(url, next(bodies), seen)
        except (OSError, BrokenStreamError) as error:
            seen.failures.append(f"{type(error).__name__}: {error}")
            pause_s = 1.0
        await asyncio.sleep(min(pause_s, max(0.0, until_s - time.monotonic())))


def load(url: str, model: str, clients: int, plan: OverloadPlan, seed: int) -> Seen:
    """Run so many clients."""

    def bodies() -> Iterator[bytes]:
        number = seed
        while True:
            number += 1
            [prompt] = random_prompts(1, plan.prompt_tokens, number, plan.vocab_size)
            yield orjson.dumps(completion_body(model, prompt, plan.output_tokens))

    async def run() -> None:
        until_s, shared = time.monotonic() + plan.for_s, bodies()
        await asyncio.gather(*(ask_on(url, shared, until_s, seen) for _ in range(clients)))

    seen, began_s, cpu_s = Seen(), time.monotonic(), time.process_time()
    asyncio.run(run())
    seen.wall_s, seen.cpu_s = time.monotonic() - began_s, time.process_time() - cpu_s
    return seen


def figures(url: str, model: str, plan: OverloadPlan) -> Iterator[Figure]:
    """Run capacity, overload and capacity again; yield what was seen, and the ratios."""
    load(url, model, plan.seats, OverloadPlan(plan.seats, for_s=3.0), seed=10**6)
    clients = (plan.seats, plan.factor * plan.seats, plan.seats)
    seen = [load(url, model, count, plan, 10**7 * (n + 2)) for n, count in enumerate(clients)]
    for count, each in zip(clients, seen, strict=True):
        labels = {"clients": count}
        yield Figure("goodput", each.goodput, "tokens/s", labels)
        yield Figure("gap_p99", each.gap_s(0.99), "s", labels)
        yield Figure("gap_max", each.gap_s(1.0), "s", labels)
        yield Figure("refused", float(len(each.refusals_s)), "requests", labels)
        yield Figure("failed", float(len(each.failures)), "requests", labels)
        yield Figure("refusal_p99", _p99(each.refusals_s), "s", labels)
        yield Figure("load_cpu", each.cpu_s / each.wall_s, "cores", labels)
    before, over, after = seen
    base_gap_s = (before.gap_s(0.99) + after.gap_s(0.99)) / 2
    yield Figure("overload_gap_p99_ratio", over.gap_s(0.99) / base_gap_s, "x")
    base_goodput = (before.goodput + after.goodput) / 2
    yield Figure("overload_goodput_ratio", over.goodput / base_goodput, "x")


def _p99(values_s: Sequence[float]) -> float:
    return float(np.quantile(values_s, 0.99, method="higher")) if values_s else 0.0


def main() -> None:
    """Start a server, load it, print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="models/demo")
    parser.add_argument("--mode", choices=("inline", "local"), default="inline")
    parser.add_argument("--seats", type=int, default=OverloadPlan.seats)
    parser.add_argument("--queue", type=int, default=OverloadPlan.queue, help="choices that wait")
    parser.add_argument("--seconds", type=float, default=OverloadPlan.for_s, help="of each load")
    options = parser.parse_args()
    plan = OverloadPlan(options.seats, options.queue, for_s=options.seconds)
    sizes = ("--max-num-seqs", str(plan.seats), "--max-waiting", str(plan.queue))
    machine = Machine.here()
    arguments = ("--model", options.model, "--mode", options.mode, *sizes)
    with trinity_server(arguments) as server:
        for figure in figures(server.url, served_model(server.url), plan):
            report(machine, figure, model=options.model, mode=options.mode)


if __name__ == "__main__":
    main()
