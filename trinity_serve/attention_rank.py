"""An attention rank as a Serve deployment: a shell around `RankHost`.

It loads the rank off the event loop, follows the pool's placement, and shows its numbers to Ray.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from cluster.pool_messages import PoolView, RankLoad, RankSight
from cluster.types import PlacementVersion
from trinity_serve.api.event_stream import StreamAddress
from trinity_serve.config import ServeConfig
from trinity_serve.rank_call import GenerateCall
from trinity_serve.ray_metrics import RankMetrics

if TYPE_CHECKING:  # these load torch, which a process that only deploys this class can do without
    from trinity_serve.opened_rank import RankOpener

logger = logging.getLogger("ray.serve")
"""Serve's own: it writes into the file of the replica, with the request's id."""

# Serve's handles have no static type that mypy could follow.
PoolMethod = Any

METRICS_PERIOD_S = 2.0
POOL_RETRY_S = 0.25


class AttentionRank:
    """One replica is one rank."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        config: ServeConfig,
        open_rank: RankOpener,
        pool: DeploymentHandle[PoolView],
    ) -> None:
        context = serve.get_replica_context()
        loop = asyncio.get_running_loop()
        self._pool = pool
        self._known: PlacementVersion | None = None
        self._addresses: tuple[str, ...] = ()
        self._telling: set[asyncio.Task[None]] = set()
        self._opened = await loop.run_in_executor(None, open_rank, config, context.rank.rank)
        self._opened.losses.listener = lambda shard, incarnation, reason: loop.call_soon_threadsafe(
            # At once: the pool's own look at the shards would come a quarter second later.
            self._tell,
            "loss",
            self._pool.lost,
            shard,
            incarnation,
            reason,
        )
        if self._opened.load is not None:
            self._opened.load.listener = lambda rows_LE: loop.call_soon_threadsafe(
                self._tell, "load", self._pool.report_load, rows_LE
            )
        self._tag = context.replica_tag
        self._host = self._opened.host(self._tag)
        self._metrics = RankMetrics(config.model.public_name)
        self._tasks = [
            asyncio.create_task(self._follow_pool(), name="follow-pool"),
            asyncio.create_task(self._show_metrics(), name="show-metrics"),
        ]
        # Serve sends requests once this returns: not before every expert is covered.
        await self._host.until_ready()

    async def generate(self, call: GenerateCall) -> None:
        """Run one choice; its events go to `call.reply_to`, nothing is returned."""
        logger.info("request %s choice %d", call.request.request_id, call.request.choice)
        await self._host.generate(call.request, StreamAddress.from_text(call.reply_to))

    async def _follow_pool(self) -> None:
        """Take every newer placement; the last one serves while the pool is away."""
        while True:
            try:
                view = await self._pool.view.remote(self._sight())
            except (RayError, RayServeException) as error:
                logger.warning("the pool does not answer: %s", error)
                await asyncio.sleep(POOL_RETRY_S)
                continue
            self._take(view)

    def _sight(self) -> RankSight:
        stats = self._host.state().stats
        load = RankLoad(stats.num_waiting_tokens, stats.kv_usage)
        return RankSight(self._tag, self._known, len(self._addresses), load)

    def _take(self, view: PoolView) -> None:
        placement = view.placement
        if placement is not None and (self._known is None or placement.version > self._known):
            self._known = placement.version
            self._opened.publish(placement, view.token)
        self._addresses = view.subscribers
        self._host.attach(StreamAddress.from_text(text) for text in view.subscribers)

    def _tell(self, what: str, method: PoolMethod, *arguments: object) -> None:
        task = asyncio.create_task(self._call_pool(what, method, *arguments))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _call_pool(self, what: str, method: PoolMethod, *arguments: object) -> None:
        try:
            await method.remote(*arguments)
        except (RayError, RayServeException) as error:
            logger.warning("the pool does not hear of a %s: %s", what, error)

    async def _show_metrics(self) -> None:
        while True:
            self._metrics.show(self._host.state().stats)
            await asyncio.sleep(METRICS_PERIOD_S)

    def check_health(self) -> None:
        """Raise when the engine makes no turn: Serve then replaces this rank."""
        self._host.check_alive()

    async def __del__(self) -> None:
        """End the engine; what is still open is cancelled, and its ingress replays it."""
        for task in self._tasks:
            task.cancel()
        await self._host.close()
        await asyncio.get_running_loop().run_in_executor(None, self._opened.close)
