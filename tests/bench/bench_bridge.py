"""Bytes per token and layer over gRPC between two machines on a link of known speed.

    python -m tests.bench.bench_bridge --shards 4 --rate 1gbit      # needs root, ip and tc

Two network namespaces on a bridge whose ports are limited in both directions (`tc`, token bucket):
shards (`python -m experts`) in one, a rank's dispatcher in the other, rows of Trinity-Large's width
and choice of experts, experts of next to no width and weights that are zeros, so that the link is
what is measured. Bytes are what the kernel counts on the rank's interface, TCP and IP headers
included; rows go up in bf16, each to a shard once, and come back un-reduced. Beside it stands the
arithmetic of `trinity plan` without any header. tokens/s are for exchanges alone, one after another
as one micro-batch makes them, with so many layers as Large has.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cluster.deadline import Deadline
from cluster.model_config import AfmoeConfig
from cluster.placement import Placement, ShardInfo
from cluster.transport import transport_for
from cluster.transport.session import Session, open_session
from cluster.types import PlacementVersion, ShardId
from cluster.wire import Hello
from tests.bench.bench_dispatch import Model, connected, layer_times_s
from tests.bench.report import Figure, report
from tests.bench.report import Machine as Bench
from tests.support.namespaces import Machine, machines, why_not
from tests.support.shards import ROOT, ShardProcess
from trinity_serve.planning.traffic import LayerTraffic, layer_traffic
from trinity_serve.synthetic import PRESETS, slice_of
from trinity_serve.synthetic.writer import write_checkpoint_outline

ROWS = (1, 4, 16, 64, 256)
WORKER_TIMEOUT_S = 600.0
_COUNTERS = Path("/sys/class/net/eth0/statistics")


def bridge_shape(num_layers: int) -> AfmoeConfig:
    """Return Large with so many MoE layers, experts of width 32 and a small vocabulary."""
    layers = num_layers + 1
    thin = slice_of(PRESETS["large"], num_layers=layers, num_dense_layers=1)
    return replace(thin, moe_intermediate_size=32, intermediate_size=32, vocab_size=512)


@dataclass(frozen=True)
class Job:
    """What the process on the rank's machine is told."""

    checkpoint: str
    addresses: list[str]
    incarnations: list[int]
    rows: list[int]
    steps: int


@dataclass(frozen=True)
class Crossing:
    """What `rows` tokens per step took."""

    rows: int
    tokens: int
    """Over all steps and layers: how often a row went to its experts and came back."""
    sent_bytes: int
    received_bytes: int
    seconds: float
    """Mean of one layer's exchange."""

    @property
    def measured(self) -> LayerTraffic:
        """Bytes per token and layer."""
        return LayerTraffic(self.sent_bytes / self.tokens, self.received_bytes / self.tokens)

    def tokens_per_s(self, num_layers: int) -> float:
        """Tokens per second of a model of so many MoE layers that does nothing else."""
        return self.rows / (self.seconds * num_layers)


def link_tokens_per_s(traffic: LayerTraffic, bits_per_s: float, num_layers: int) -> float:
    """Return the most that a link carries: both directions run at once, the fuller one binds."""
    fuller = max(traffic.up_bytes, traffic.down_bytes)
    return bits_per_s / 8 / (fuller * num_layers)


def figures(
    crossing: Crossing, config: AfmoeConfig, num_shards: int, rate: str
) -> Iterator[Figure]:
    """Yield bytes measured, computed, and their ratio, in both directions; then the rates."""
    computed, measured = layer_traffic(config, num_shards), crossing.measured
    labels: dict[str, str | int] = {"rows": crossing.rows}
    for name, of in (("up", "up_bytes"), ("down", "down_bytes")):
        counted, expected = getattr(measured, of), getattr(computed, of)
        yield Figure(f"bridge_{name}_measured", counted, "bytes/token/layer", labels)
        yield Figure(f"bridge_{name}_computed", expected, "bytes/token/layer", labels)
        yield Figure(f"bridge_{name}_ratio", counted / expected, "ratio", labels)
    large = PRESETS["large"].num_moe_layers
    tokens_per_s = crossing.tokens_per_s(large)
    most = link_tokens_per_s(computed, bits_of(rate), large)
    yield Figure("bridge_rate", tokens_per_s, "tokens/s", labels)
    yield Figure("bridge_rate_of_link", most, "tokens/s", labels)
    yield Figure("bridge_share_of_link", tokens_per_s / most, "ratio", labels)


def bits_of(rate: str) -> float:
    """Return bits per second of a rate in tc's words: 1gbit, 100mbit."""
    for unit, factor in (("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3)):
        if rate.endswith(unit):
            return float(rate.removesuffix(unit)) * factor
    raise ValueError(f"{rate!r} is not a rate such as 1gbit or 100mbit")


def work(job: Job) -> Iterator[Crossing]:
    """Exchange rows with the shards; runs on the rank's machine."""
    model = Model.open(Path(job.checkpoint))
    config, fingerprint = model.checkpoint.config, model.arithmetic.fingerprint

    def connect(shard: ShardInfo, deadline: Deadline) -> Session:
        hello = Hello(fingerprint, 0, 1, 1, "")
        return open_session(transport_for(shard.address), shard.address, hello, deadline)

    shards = tuple(
        ShardInfo(ShardId(index), address, job.incarnations[index])
        for index, address in enumerate(job.addresses)
    )
    placement = Placement.sliced(
        PlacementVersion(1, 1), shards, config.num_moe_layers, config.num_experts
    )
    with (
        ThreadPoolExecutor(len(shards)) as executor,
        connected(model, connect, executor, placement) as dispatcher,
    ):
        for rows in job.rows:
            before = _counted()
            times_s = layer_times_s(dispatcher, model, rows, job.steps)
            sent, received = (
                after - first for after, first in zip(_counted(), before, strict=True)
            )
            # One step more than was timed: the first warms up, and is counted.
            tokens = rows * (job.steps + 1) * config.num_moe_layers
            yield Crossing(rows, tokens, sent, received, sum(times_s) / len(times_s))


def _counted() -> tuple[int, int]:
    """Return bytes sent and received so far on this machine's link."""
    sent, received = (int((_COUNTERS / name).read_text()) for name in ("tx_bytes", "rx_bytes"))
    return sent, received


@contextmanager
def shards_on(
    machine: Machine, path: Path, count: int, folder: Path
) -> Iterator[list[ShardProcess]]:
    """Start shards on a machine, listening on its address."""
    with ExitStack() as stack:
        shards = []
        for index in range(count):
            shard = ShardProcess.start(
                *("--model", str(path), "--shard", f"{index}/{count}"),
                *("--listen", f"grpc://{machine.host}:0"),
                *("--die-with-parent", str(os.getpid())),
                errors_to=folder / f"shard{index}",
                prefix=machine.command(),
            )
            stack.enter_context(shard)
            # They hold nothing worth an orderly end, which takes long on a busy machine.
            stack.callback(shard.process.kill)
            shards.append(shard)
        yield shards


def crossings(
    config: AfmoeConfig, num_shards: int, rate: str, rows: Sequence[int], steps: int
) -> list[Crossing]:
    """Make machines and limit their links, start shards, exchange rows; end it all."""
    with tempfile.TemporaryDirectory(prefix="b-") as name, machines(2) as (near, far):
        folder = Path(name)
        path = write_checkpoint_outline(config, folder / "model")
        for machine in (near, far):
            machine.limit(rate)
        with shards_on(far, path, num_shards, folder) as shards:
            job = Job(
                str(path),
                [shard.addresses["grpc"] for shard in shards],
                [shard.incarnation for shard in shards],
                list(rows),
                steps,
            )
            words = (sys.executable, "-m", "tests.bench.bench_bridge", "--job")
            done = subprocess.run(
                near.command(*words),
                input=json.dumps(asdict(job)),
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=WORKER_TIMEOUT_S,
                check=False,
            )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return [Crossing(**json.loads(line)) for line in done.stdout.splitlines()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, nargs="+", default=[4])
    parser.add_argument("--rate", default="1gbit", help="of the links, in tc's words")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--job", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.job:
        for crossing in work(Job(**json.load(sys.stdin))):
            sys.stdout.write(json.dumps(asdict(crossing)) + "\n")
        return
    if problem := why_not():
        parser.error(problem)
    bits_of(options.rate)
    bench, config = Bench.here(), bridge_shape(options.layers)
    for count in options.shards:
        for crossing in crossings(config, count, options.rate, options.rows, options.steps):
            for figure in figures(crossing, config, count, options.rate):
                report(bench, figure, shape="large", shards=count, link=options.rate)


if __name__ == "__main__":
    main()
