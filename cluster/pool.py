"""The pool as a Ray shell: creates, watches and replaces shards, and tells ranks where they are.

What to do is decided by `cluster.membership`; this module only does it. It never imports experts: a
`ShardLauncher` comes from above.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import threading
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve._private.common import DeploymentID

from cluster.balancer import Balancer
from cluster.errors import ConfigError, NotReadyError
from cluster.expert_map import ExpertMap, describe_experts
from cluster.load_stats import LoadLE
from cluster.membership import Membership
from cluster.placement import Placement
from cluster.pool_actions import Action, Hold, Kill, Spawn
from cluster.pool_messages import (
    LaunchOrder,
    PoolView,
    RankLoad,
    RankSight,
    Scale,
    ShardKey,
    ShardReport,
    Target,
)
from cluster.pool_metrics import POOL_SPECS, PoolMetrics
from cluster.pool_policies import PoolPolicies
from cluster.pool_status import OperationStatus, PoolStatus, describe_operation, describe_pool
from cluster.rank_scaling import RankScaling
from cluster.ray_export import RayExport
from cluster.shard_handles import SILENT_SHARD_S, TURN_S, ShardHandles
from cluster.shard_launcher import ShardLauncher
from cluster.types import PlacementVersion
from cluster.warm_spare import WarmSpare, find_grown_spares

logger = logging.getLogger("ray.serve")
"""Serve's own: it writes into the file of the replica, with the request's id."""

# Ray's references have no static type that mypy could follow.
Ref = Any

LOG_PROGRESS_S = 5.0
METRICS_PERIOD_S = 2.0
CONTROLLER_ANSWER_S = 2.0
ADOPT_TIMEOUT_S = 2.0
"""How long a new pool waits for shards that it found to say what they hold."""
SUBSCRIPTION_S = 15.0
RANK_SILENT_S = 5.0
"""A rank that has asked for no news for so long is gone; it asks every `VIEW_WAIT_S`."""
VIEW_WAIT_S = 2.0
"""How long a rank's question waits for news. Short, because open calls delay a shutdown."""


class ExpertPool:
    """Serve deployment with exactly one replica: owns the shards of its application.

    `patience_s`: how long the first starts wait for coverage before they fail with the progress as
    their reason; later ones wait as long as it takes. Only a failed start shows a text of ours in
    `serve status`, and Serve gives up after the third.
    """

    def __init__(
        self,
        launcher: ShardLauncher,
        configured: Target,
        patience_s: Sequence[float],
        policies: PoolPolicies,
    ) -> None:
        self._app = serve.get_replica_context().app_name
        self._launcher = launcher
        self._patience_s = patience_s
        self._handles = ShardHandles(self._app)
        self._token = secrets.token_hex(16)
        self._subscribers: dict[str, float] = {}
        self._ranks: dict[str, tuple[float, RankLoad]] = {}
        """When each rank asked for news last, and its load then."""
        # Guards the membership: the loop below works on it, Serve's calls read and rescale it.
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        # Ends the pause between turns: somebody waits for what the next one brings.
        self._news = threading.Event()
        self._membership = Membership(*launcher.model_shape(), Scale.of(configured))
        self._spare = WarmSpare(launcher, self._app, enabled=policies.warm_spare)
        self._balancer = Balancer(launcher.model_shape(), policies.balance)
        self._rank_scaling = RankScaling(policies.ranks)
        self._metrics = PoolMetrics()
        self._export = RayExport(POOL_SPECS, {"application": self._app})
        self._show_metrics_at_s = 0.0
        self._adopt()
        self._thread = threading.Thread(target=self._run, name="expert-pool", daemon=True)

    def _adopt(self) -> None:
        reports: list[ShardReport] = []
        started_at_s = time.monotonic()
        keys = self._find()
        # One answer at least: it has the token that the others ask for too.
        while keys and time.monotonic() - started_at_s < (
            ADOPT_TIMEOUT_S if reports else SILENT_SHARD_S
        ):
            for key, report in self._handles.poll(keys):
                keys.remove(key)
                reports += [] if report is None else [report]
        for stranger in [each for each in reports if each.serves != self._launcher.serves]:
            logger.warning("shard %d holds experts of %s", stranger.key.index, stranger.serves)
            self._handles.kill(stranger.key)
            reports.remove(stranger)
        if reports:
            self._token = reports[0].token
            logger.info("found %d living shards", len(reports))
        else:
            # Shards that nobody can ask for their token serve nobody.
            keys = [key for key in keys if not self._handles.kill(key)]
        self._membership.adopt(reports, starting=keys)

    def _find(self) -> list[ShardKey]:
        grown = find_grown_spares(self._app, self._handles)
        return self._handles.find() + [report.key for report in grown]

    def reconfigure(self, user_config: dict[str, int]) -> None:
        """Take the configured number of shards; called at every start and when it has changed.

        The first call returns when every expert is covered. Raises `NotReadyError` with the
        progress when that takes long, so that `serve status` shows it.
        """
        with self._lock:
            self._membership.rescale(Target(**user_config))
        if not self._thread.is_alive():
            self._thread.start()
            self._await_coverage()

    def _await_coverage(self) -> None:
        starts = self._membership.epoch - 1  # an epoch for each
        patience_s = dict(enumerate(self._patience_s)).get(starts, math.inf)
        started_at_s = time.monotonic()
        logged_at_s = -LOG_PROGRESS_S
        while True:
            with self._lock:
                covered, progress = self._membership.covered, self._membership.progress()
            if covered:
                return
            if time.monotonic() - logged_at_s >= LOG_PROGRESS_S:
                logger.info(progress)
                logged_at_s = time.monotonic()
            if time.monotonic() - started_at_s > patience_s and self._handles.answered:
                self._stopping.set()
                raise NotReadyError(progress)
            time.sleep(TURN_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except RayError as error:
                # Ray's control service may be away for a while; shards and ranks go on.
                logger.warning("pool: %s", error)
                self._stopping.wait(TURN_S)

    def _turn(self) -> None:
        started_at_s = time.monotonic()
        self._news.clear()
        with self._lock:
            keys = self._membership.keys
        answers = self._handles.poll(keys)
        now_s = time.monotonic()
        with self._lock:
            for key, report in answers:
                if report is None:
                    self._membership.died(key, now_s)
                else:
                    self._membership.reported(report, now_s)
            ranks = self._living_ranks(now_s)
            num_ranks = self._rank_scaling.wanted(ranks, now_s)
            by_hand = self._membership.scale.ranks_by_hand
            self._membership.ranks_are(max(1, len(ranks)))
            num_moves = self._balancer.turn(self._membership, now_s)
            actions = self._membership.actions(now_s)
            quiet = self._membership.settled
            self._metrics.turn(self._membership, actions)
        self._show_metrics(now_s)
        if num_moves:
            logger.info("%d experts move to even out load", num_moves)
        for action in actions:
            self._do(action)
        self._spare.tend(quiet=quiet)
        if num_ranks is not None and not by_hand:
            logger.info("load asks for %d attention ranks", num_ranks)
            ray.get(self._scale_ranks(num_ranks), timeout=CONTROLLER_ANSWER_S)
        self._news.wait(max(0.0, started_at_s + TURN_S - time.monotonic()))

    def _show_metrics(self, now_s: float) -> None:
        if now_s < self._show_metrics_at_s:
            return
        self._show_metrics_at_s = now_s + METRICS_PERIOD_S
        with self._lock:
            samples = list(self._metrics.samples(self._membership, self._balancer.rows_LE(now_s)))
        self._export.show(samples)

    def _living_ranks(self, now_s: float) -> list[RankLoad]:
        self._ranks = {
            rank: seen for rank, seen in self._ranks.items() if seen[0] + RANK_SILENT_S > now_s
        }
        return [load for _, load in self._ranks.values()]

    def _scale_ranks(self, num_ranks: int) -> Ref:
        # What Serve's own REST call for this runs; the dashboard it is sent to may be off.
        client = serve.context._get_global_client()
        assert client is not None
        deployment = DeploymentID("AttentionRank", self._app)
        return client._controller.update_deployment_replicas.remote(deployment, num_ranks)

    def _do(self, action: Action) -> None:
        if isinstance(action, Spawn):
            order = self._order(action)
            if not self._spare.become(order, self._handles):
                self._launcher.launch(order)
        elif isinstance(action, Hold):
            handle = self._handles.get(action.key)
            if handle is not None:
                handle.hold.remote(self._membership.epoch, action.holds_LE)
        elif isinstance(action, Kill):
            self._handles.end(action.key)
        else:
            version = action.placement.version
            logger.info("placement %s: %d shards", version, len(action.placement.shards))
            self._tell_shards(action.placement)

    def _order(self, spawn: Spawn) -> LaunchOrder:
        membership = self._membership
        return LaunchOrder(
            spawn.key,
            self._app,
            membership.epoch,
            membership.scale,
            self._token,
            spawn.holds_LE,
        )

    def _tell_shards(self, placement: Placement) -> None:
        """Leave version and scale with the shards: for their replies and for the next pool."""
        for key in self._membership.keys:
            handle = self._handles.get(key)
            if handle is not None:
                handle.serve_under.remote(placement.version, self._membership.scale)

    async def view(self, sight: RankSight) -> PoolView:
        """Return what a rank does not know yet; waits a moment for news."""
        deadline_s = time.monotonic() + VIEW_WAIT_S
        with self._lock:
            self._ranks[sight.rank] = (time.monotonic(), sight.load)
        while True:
            view = self._view(sight.placement)
            if view.placement is not None or len(view.subscribers) != sight.num_subscribers:
                return view
            if time.monotonic() > deadline_s or self._stopping.is_set():
                return view
            await asyncio.sleep(0.05)

    def _view(self, known: PlacementVersion | None) -> PoolView:
        oldest_s = time.monotonic() - SUBSCRIPTION_S
        living = {name: at_s for name, at_s in self._subscribers.items() if at_s >= oldest_s}
        self._subscribers = living
        with self._lock:
            if known is not None and known.epoch > self._membership.epoch:
                self._membership.outbid(known.epoch)
            placement = self._membership.placement
        news = placement if placement is not None and placement.version != known else None
        return PoolView(news, tuple(sorted(living)), self._token)

    async def report_load(self, rows_LE: LoadLE) -> None:
        """Take what a rank has sent to each expert since it told last."""
        with self._lock:
            self._balancer.reported(rows_LE, time.monotonic())

    async def subscribe(self, address: str) -> None:
        """Let every rank know of an ingress; has to be renewed every few seconds."""
        self._subscribers[address] = time.monotonic()

    async def lost(self, shard: int, incarnation: int, reason: str) -> None:
        """Take note that a rank lost a shard, or waits for it in vain; acted upon at once."""
        with self._lock:
            self._membership.suspected(shard, incarnation, reason, time.monotonic())
        self._news.set()

    async def scale(self, target: Target | None, operation_id: str) -> OperationStatus:
        """Begin, or ask after, the operation that leads to `target`; None: the configured one.

        With None the number of ranks follows the load again.
        Raises `ConfigError` with the reason when `target` is impossible.
        """
        with self._lock:
            wanted = self._membership.scale.configured if target is None else target
            if target is None:
                self._membership.set_ranks_by_hand(False)
            operation = describe_operation(self._membership.scale_to(wanted, operation_id))
        self._news.set()
        return operation

    async def scale_ranks(self, num_ranks: int) -> None:
        """Have Serve run so many ranks, whatever the load, until `scale(None)`.

        Raises `ConfigError` when Serve is not allowed to change it.
        """
        with self._lock:
            self._membership.set_ranks_by_hand(True)
        try:
            await self._scale_ranks(num_ranks)
        except RayTaskError as error:
            problem = "Serve may not change it"
            allowed = "the application with external_scaler_enabled: true"
            raise ConfigError("scale", "num_ranks", problem, allowed) from error

    async def status(self) -> PoolStatus:
        """Return what there is to know about the shards."""
        with self._lock:
            return describe_pool(self._membership, time.monotonic(), has_spare=self._spare.is_ready)

    async def experts(self) -> ExpertMap:
        """Return who holds which expert and where rows went lately."""
        with self._lock:
            rows_LE = self._balancer.rows_LE(time.monotonic())
            placement = self._membership.placement
        return describe_experts(placement, rows_LE)

    async def kill_shard(self, shard: int, incarnation: int | None) -> ShardKey:
        """Have a shard's process killed at once. See `Membership.kill`."""
        with self._lock:
            key = self._membership.kill(shard, incarnation, time.monotonic())
        self._news.set()
        return key

    async def drain_shard(self, shard: int, incarnation: int | None) -> ShardKey:
        """Begin to empty and replace a shard. See `Membership.drain`."""
        with self._lock:
            key = self._membership.drain(shard, incarnation)
        self._news.set()
        return key

    def check_health(self) -> None:
        """Raise when the loop has ended: then nobody watches the shards."""
        if self._thread.ident is not None and not self._thread.is_alive():
            raise NotReadyError("the pool's loop has ended")

    def __del__(self) -> None:
        """End the shards when the application is being deleted; otherwise they live on."""
        self._stopping.set()
        self._news.set()
        if not is_deleted(self._app):
            return
        for key in self._find():
            handle = self._handles.get(key)
            if handle is not None:
                ray.kill(handle, no_restart=True)


def is_deleted(app: str) -> bool:
    """Ask Serve's controller whether the application is gone or going."""
    try:
        status = serve.status().applications.get(app)
    except (RayError, RuntimeError) as error:
        logger.warning("cannot ask the controller about %s: %s", app, error)
        return False
    return status is None or status.status == "DELETING"
