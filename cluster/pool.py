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

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError

from cluster.adoption import find_living, find_shards
from cluster.balancer import Balancer
from cluster.errors import ConfigError, NotReadyError
from cluster.expert_map import ExpertMap, describe_experts
from cluster.load_stats import LoadLE
from cluster.membership import Membership
from cluster.pool_messages import (
    PoolView,
    RankSight,
    Scale,
    ShardKey,
    Target,
)
from cluster.pool_metrics import POOL_SPECS, PoolMetrics
from cluster.pool_policies import PoolPolicies
from cluster.pool_status import OperationStatus, PoolStatus, describe_operation, describe_pool
from cluster.rank_scaling import RankScaling
from cluster.rank_watch import RankWatch
from cluster.ray_export import RayExport
from cluster.serve_controller import is_deleted, scale_ranks
from cluster.shard_handles import TURN_S, ShardHandles
from cluster.shard_keeper import ShardKeeper
from cluster.shard_launcher import ShardLauncher
from cluster.types import PlacementVersion
from cluster.warm_spare import WarmSpare

logger = logging.getLogger("ray.serve")
"""Serve's own: it writes into the file of the replica, with the request's id."""

QUIET_TURN_S = 1.0
"""Between looks while all is well: a look costs milliseconds, and ranks tell a loss at once."""
LOG_PROGRESS_S = 5.0
METRICS_PERIOD_S = 2.0
CONTROLLER_ANSWER_S = 2.0
SCALE_TOLD_S = 2.0
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
        # Guards membership and watch: the loop below works on them, Serve's calls read and change.
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        # Ends the pause between turns: somebody waits for what the next one brings.
        self._news = threading.Event()
        self._membership = Membership(*launcher.model_shape(), Scale.of(configured))
        self._spare = WarmSpare(launcher, self._app, enabled=policies.warm_spare)
        self._keeper = ShardKeeper(
            self._app, self._membership, self._handles, launcher, self._spare
        )
        self._watch = RankWatch()
        self._balancer = Balancer(launcher.model_shape(), policies.balance)
        self._rank_scaling = RankScaling(policies.ranks)
        self._metrics = PoolMetrics()
        self._export = RayExport(POOL_SPECS, {"application": self._app})
        self._show_metrics_at_s = 0.0
        self._adopt()
        self._thread = threading.Thread(target=self._run, name="expert-pool", daemon=True)

    def _adopt(self) -> None:
        found = find_living(self._app, self._handles, self._launcher.serves)
        self._keeper.token = found.reports[0].token if found.reports else secrets.token_hex(16)
        self._membership.adopt(found.reports, found.starting)

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
            ranks = self._watch.loads(now_s)
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
            self._keeper.do(action)
        self._spare.tend(quiet=quiet)
        if num_ranks is not None and not by_hand:
            logger.info("load asks for %d attention ranks", num_ranks)
            ray.get(scale_ranks(self._app, num_ranks), timeout=CONTROLLER_ANSWER_S)
        turn_s = QUIET_TURN_S if quiet and not actions else TURN_S
        self._news.wait(max(0.0, started_at_s + turn_s - time.monotonic()))

    def _show_metrics(self, now_s: float) -> None:
        if now_s < self._show_metrics_at_s:
            return
        self._show_metrics_at_s = now_s + METRICS_PERIOD_S
        with self._lock:
            samples = list(self._metrics.samples(self._membership, self._balancer.rows_LE(now_s)))
        self._export.show(samples)

    async def view(self, sight: RankSight) -> PoolView:
        """Return what a rank does not know yet; waits a moment for news."""
        deadline_s = time.monotonic() + VIEW_WAIT_S
        with self._lock:
            self._watch.seen(sight, time.monotonic())
        while True:
            view = self._view(sight.placement)
            if view.placement is not None or len(view.subscribers) != sight.num_subscribers:
                return view
            if time.monotonic() > deadline_s or self._stopping.is_set():
                return view
            await asyncio.sleep(0.05)

    def _view(self, known: PlacementVersion | None) -> PoolView:
        with self._lock:
            subscribers = self._watch.subscribers(time.monotonic())
            if known is not None and known.epoch > self._membership.epoch:
                self._membership.outbid(known.epoch)
            placement = self._membership.placement
        news = placement if placement is not None and placement.version != known else None
        return PoolView(news, subscribers, self._keeper.token)

    async def report_load(self, rows_LE: LoadLE) -> None:
        """Take what a rank has sent to each expert since it told last."""
        with self._lock:
            self._balancer.reported(rows_LE, time.monotonic())

    async def subscribe(self, address: str) -> None:
        """Let every rank know of an ingress; has to be renewed every few seconds."""
        with self._lock:
            self._watch.subscribed(address, time.monotonic())

    async def lost(self, shard: int, incarnation: int, reason: str) -> None:
        """Take note that a rank lost a shard, or waits for it in vain; acted upon at once."""
        with self._lock:
            self._membership.suspected(shard, incarnation, reason, time.monotonic())
        self._news.set()

    async def scale(self, target: Target | None, operation_id: str) -> OperationStatus:
        """Begin, or ask after, the operation that leads to `target`; None: the configured one.

        With None the number of ranks follows the load again. Returns once a shard has the target,
        so that it outlives this pool, or after a moment when none serves.
        Raises `ConfigError` with the reason when `target` is impossible.
        """
        with self._lock:
            wanted = self._membership.scale.configured if target is None else target
            if target is None:
                self._membership.set_ranks_by_hand(False)
            operation = describe_operation(self._membership.scale_to(wanted, operation_id))
            revision = self._membership.scale.revision
        self._news.set()
        deadline_s = time.monotonic() + SCALE_TOLD_S
        while self._keeper.told_revision < revision and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
        return operation

    async def scale_ranks(self, num_ranks: int) -> None:
        """Have Serve run so many ranks, whatever the load, until `scale(None)`.

        Raises `ConfigError` when Serve is not allowed to change it.
        """
        with self._lock:
            self._membership.set_ranks_by_hand(True)
        try:
            await scale_ranks(self._app, num_ranks)
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
        for key in find_shards(self._app, self._handles):
            handle = self._handles.get(key)
            if handle is not None:
                ray.kill(handle, no_restart=True)
