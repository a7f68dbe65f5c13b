"""What an attention rank loads: its weights, its engine and its way to the shards."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cluster.deadline import Deadline
from cluster.load_stats import LoadStats
from cluster.metrics import Metrics
from cluster.placement import Placement, ShardInfo
from cluster.tls import TlsFiles
from cluster.topology import connect_any
from cluster.transport import transport_for
from cluster.transport.session import Session, open_session
from cluster.types import Fingerprint
from cluster.wire import Hello
from trinity_serve.arithmetic import Arithmetic
from trinity_serve.config import ServeConfig
from trinity_serve.engine.engine import Engine
from trinity_serve.engine.step_watch import StepWatch
from trinity_serve.load_reporter import LoadReporter
from trinity_serve.observe.tracing import Traces
from trinity_serve.opened_rank import LossRelay, OpenedRank
from trinity_serve.parts.checkpoint import open_checkpoint
from trinity_serve.rank import (
    ShardAccess,
    build_rank,
    open_grammars,
    open_sampler,
    routing_recorder,
)
from trinity_serve.threads import num_cores, rank_threads

CONNECTING_THREADS = 4


@dataclass
class _ShardDoor:
    """How a rank presents itself to shards. Written by `publish`, read by connecting threads."""

    fingerprint: Fingerprint
    rank: int
    incarnation: int
    tls: TlsFiles | None
    metrics: Metrics
    epoch: int = 0
    token: str = ""

    def connect(self, shard: ShardInfo, deadline: Deadline) -> Session:
        """Open a session over the first of the shard's addresses that answers."""
        hello = Hello(self.fingerprint, self.rank, self.incarnation, self.epoch, self.token)
        return connect_any(
            shard.address,
            lambda address: open_session(
                transport_for(address, self.tls, self.metrics), address, hello, deadline
            ),
        )


def open_rank(config: ServeConfig, rank: int) -> OpenedRank:
    """Load the rank of this number; blocks. Raises `ConfigError` and `CheckpointError`."""
    checkpoint = open_checkpoint(config)
    arithmetic = Arithmetic.settle(config, checkpoint)
    arithmetic.kernels.set_threads(rank_threads(config, num_cores()))
    traces = Traces.open(config.observability, f"rank {rank}")
    metrics = Metrics()
    door = _ShardDoor(
        arithmetic.fingerprint, rank, secrets.randbits(48), config.security.link_tls, metrics
    )
    threads = ThreadPoolExecutor(CONNECTING_THREADS, thread_name_prefix="connect-shard")
    losses = LossRelay()

    def lost(shard: ShardInfo, reason: str) -> None:
        losses.listener(shard.shard_id, shard.incarnation, reason)

    access = ShardAccess(door.connect, threads, lost)
    runner, engine_config = build_rank(config, checkpoint, arithmetic, access, metrics, rank)

    def publish(placement: Placement, token: str) -> None:
        door.epoch, door.token = placement.version.epoch, token
        runner.dispatcher.publish(placement)

    model = checkpoint.config
    stats = LoadStats(model.num_moe_layers, model.num_experts)
    load = LoadReporter(stats, config.experts.load_report_s)
    runner.dispatcher.observe = load.observe
    engine = Engine(
        runner,
        engine_config,
        open_sampler(config),
        grammars=open_grammars(checkpoint),
        recorder=routing_recorder(runner, checkpoint.config),
        watch=StepWatch(metrics, traces.sink),
    )
    missing, name = runner.dispatcher.missing, arithmetic.fingerprint.name
    tls = config.security.link_tls
    return OpenedRank(engine, publish, missing, losses, load, name, tls, traces.close)
