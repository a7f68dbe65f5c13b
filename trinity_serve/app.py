"""The Serve application: which deployments there are, and what each is given.

`build` is what a Serve file imports; `serve_on_ray` is what the command line runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from cluster.balancer import BalancePolicy
from cluster.pool import ExpertPool
from cluster.pool_messages import LaunchOrder
from cluster.pool_policies import PoolPolicies
from cluster.rank_scaling import RankPolicy
from cluster.shard_launcher import ShardLauncher
from experts.actor import ShardLife
from experts.launcher import ActorLauncher
from trinity_serve.api.service import ModelService
from trinity_serve.attention_rank import AttentionRank
from trinity_serve.config import ResourcesConfig, ServeConfig, parse_serve_args
from trinity_serve.deferred import Deferred
from trinity_serve.ingress import Ingress
from trinity_serve.local_ray import run_application, target_of
from trinity_serve.parts.model_files import (
    check_num_shards,
    locate_model,
    read_model_config,
    read_model_shape,
)

if TYPE_CHECKING:  # torch is for the processes that compute
    from trinity_serve.opened_rank import OpenedRank, RankOpener
    from trinity_serve.parts.shard import SliceHost

POOL_CALLS = 1000
"""Open questions of ranks and ingresses to the pool; each of them has one."""
REPORT_PROGRESS_AFTER_S = (20.0, 60.0)
"""See `ExpertPool`; mode local has bars instead."""
INGRESS_DRAIN_S = 60
ROUTER = "trinity_serve.rank_router:RankRouter"


OPEN_RANK: Deferred[[ServeConfig, int], OpenedRank] = Deferred(
    "trinity_serve.parts.rank", "open_rank"
)
OPEN_SERVICE: Deferred[[ServeConfig], ModelService] = Deferred(
    "trinity_serve.parts.service", "open_service"
)
OPEN_SHARD: Deferred[[ServeConfig, LaunchOrder, str], SliceHost] = Deferred(
    "trinity_serve.parts.shard", "open_shard_host"
)


@dataclass(frozen=True)
class Parts:
    """How the processes of the application get their insides; all travel to them by pickle."""

    launcher: ShardLauncher
    open_rank: RankOpener
    open_service: Callable[[ServeConfig], ModelService]
    report_progress_after_s: tuple[float, ...] = REPORT_PROGRESS_AFTER_S


def build(args: Mapping[str, object]) -> Application:
    """Return the application that `args` describe. Raises `ConfigError`."""
    config = parse_serve_args(args)
    return assemble(config, real_parts(config))


def serve_on_ray(config: ServeConfig, *, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; all that was started has ended when this returns.

    `on_ready` is called with the endpoint once `GET /ready` answers 200 there.
    """
    config = _with_absolute_path(config)
    # Said at once and in one line here, or after seconds and in a log.
    check_num_shards(config.experts.num_shards, read_model_config(locate_model(config)))
    parts = real_parts(config)
    run_application(config, partial(assemble, parts=parts), on_ready, parts.launcher)


def _with_absolute_path(config: ServeConfig) -> ServeConfig:
    """Name a local checkpoint so that processes with another working folder find it."""
    path = Path(config.model.path)
    if not path.exists():
        return config
    model = config.model.model_copy(update={"path": str(path.resolve())})
    return config.model_copy(update={"model": model})


def real_parts(config: ServeConfig) -> Parts:
    """Return the insides that serve the configured checkpoint."""
    experts, resources = config.experts, config.experts.resources
    launcher = ActorLauncher(
        partial(OPEN_SHARD, config),
        partial(read_model_shape, config),
        {"CPU": resources.num_cpus, "GPU": resources.num_gpus},
        resources.labels,
        ShardLife(
            experts.orphan_grace_s,
            experts.domain_label,
            served_arithmetic(config),
            OPEN_SHARD.resolve,
        ),
    )
    return Parts(launcher, OPEN_RANK, OPEN_SERVICE)


def served_arithmetic(config: ServeConfig) -> str:
    """Name what shards compute: those of another name are not taken over from an earlier start."""
    model = config.model
    return f"{model.path} ({model.dtype}, kernels {model.kernels})"


def assemble(config: ServeConfig, parts: Parts) -> Application:
    """Return the application of `config` with these insides."""
    attention, ingress = config.attention, config.ingress
    target = target_of(config)
    pool = serve.deployment(
        name="ExpertPool",
        num_replicas=1,
        max_ongoing_requests=POOL_CALLS,
        user_config=asdict(target),
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=2,
        # Ranks ask for news every two seconds: nobody wants a line for each.
        logging_config={"enable_access_log": False},
        graceful_shutdown_timeout_s=8,
        graceful_shutdown_wait_loop_s=0.2,
    )(ExpertPool).bind(
        parts.launcher,
        target,
        () if config.mode == "local" else parts.report_progress_after_s,
        pool_policies(config),
    )
    ranks = serve.deployment(
        name="AttentionRank",
        num_replicas=attention.num_replicas,
        # Far above what the engine takes in: the engine's own queue has to say no.
        max_ongoing_requests=10 * (attention.max_num_seqs + attention.max_waiting),
        request_router_config=RequestRouterConfig.model_validate({"request_router_class": ROUTER}),
        ray_actor_options=actor_options(attention.resources),
        health_check_period_s=2,
        graceful_shutdown_timeout_s=5,
        graceful_shutdown_wait_loop_s=0.2,
    )(AttentionRank).bind(config, parts.open_rank, pool)
    ingresses = serve.deployment(
        name="Ingress",
        num_replicas=ingress.num_replicas,
        # Above the application's own bound, so that its answer is the one clients get; the rest is
        # for /health, /ready and /metrics.
        max_ongoing_requests=2 * ingress.max_open_requests,
        ray_actor_options=actor_options(ingress.resources),
        health_check_period_s=2,
        # An ingress that is replaced ends its streams first; at a laptop Ctrl-C is to be quick.
        graceful_shutdown_timeout_s=5 if config.mode == "local" else INGRESS_DRAIN_S,
        graceful_shutdown_wait_loop_s=0.2,
    )(serve.ingress()(Ingress))
    return ingresses.bind(config, parts.open_service, ranks, pool)


def pool_policies(config: ServeConfig) -> PoolPolicies:
    """Return what the pool does by itself."""
    experts, attention = config.experts, config.attention
    scaling = attention.autoscaling
    return PoolPolicies(
        BalancePolicy(experts.load_report_s, experts.balance_margin, experts.move_bytes_per_s),
        RankPolicy(
            attention.num_replicas,
            scaling.max_replicas,
            scaling.waiting_tokens,
            scaling.kv_usage,
            scaling.up_after_s,
            scaling.down_after_s,
        ),
        experts.warm_spare,
    )


def actor_options(resources: ResourcesConfig) -> dict[str, object]:
    """Return Ray's options of a replica."""
    options: dict[str, object] = {
        "num_cpus": resources.num_cpus,
        "num_gpus": resources.num_gpus,
    }
    if resources.labels:
        options["label_selector"] = dict(resources.labels)
    return options
