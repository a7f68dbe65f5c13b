"""`ClusterAdmin` of `inline` mode: shows the shards of this process; they cannot be changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NoReturn

from cluster.errors import ConfigError
from cluster.expert_map import ExpertMap, describe_experts
from cluster.load_stats import LoadLE, LoadStats
from cluster.placement import Placement, ShardInfo
from cluster.pool_messages import ShardKey, Target
from cluster.pool_status import OperationStatus, PoolStatus, ShardStatus
from trinity_serve.api.ranks import RankStatus
from trinity_serve.engine.client import EngineClient


class InlineAdmin:
    """Everything is ready from the start, and nothing moves.

    `reported` is called on the engine's thread, the rest on the event loop.
    """

    can_change_shards = False

    def __init__(
        self,
        placement: Placement,
        client: EngineClient,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._placement = placement
        self._client = client
        self._clock = clock
        self._stats = LoadStats(*placement.primary_LE.shape)
        self._lock = threading.Lock()

    def reported(self, rows_LE: LoadLE) -> None:
        """Take what the rank has sent to each expert since it told last."""
        with self._lock:
            self._stats.age(self._clock())
            self._stats.add(rows_LE)

    async def status(self) -> PoolStatus:
        """See `ClusterAdmin`."""
        shards = tuple(
            self._shard(position, shard) for position, shard in enumerate(self._placement.shards)
        )
        target = Target(len(shards))
        return PoolStatus(
            summary=f"{len(shards)} of {len(shards)} shards ready, in this process",
            placement=str(self._placement.version),
            covered=True,
            settled=True,
            target=target,
            configured=target,
            num_ranks=1,
            num_uncovered=0,
            num_spares=0,
            num_moved_for_load=0,
            has_spare=False,
            num_loads_left=0,
            num_frees_left=0,
            operation=None,
            shards=shards,
            failures=(),
        )

    def _shard(self, position: int, shard: ShardInfo) -> ShardStatus:
        num_held = int((self._placement.primary_LE == position).sum())
        return ShardStatus(
            shard=shard.shard_id,
            incarnation=shard.incarnation,
            state="ready",
            node="this process",
            label="",
            num_experts_held=num_held,
            num_experts_planned=num_held,
        )

    async def ranks(self) -> list[RankStatus]:
        """See `ClusterAdmin`."""
        return [RankStatus.of("inline", await self._client.stats())]

    async def experts(self) -> ExpertMap:
        """See `ClusterAdmin`."""
        with self._lock:
            self._stats.age(self._clock())
            rows_LE = self._stats.rows_LE
        return describe_experts(self._placement, rows_LE)

    async def scale(self, target: Target | None, operation_id: str) -> OperationStatus:
        """See `ClusterAdmin`; refused here."""
        self._refuse("num_shards")

    async def scale_ranks(self, num_ranks: int) -> None:
        """See `ClusterAdmin`; refused here."""
        self._refuse("num_ranks")

    async def kill_shard(self, shard: int, incarnation: int | None) -> ShardKey:
        """See `ClusterAdmin`; refused here."""
        self._refuse("shard")

    async def drain_shard(self, shard: int, incarnation: int | None) -> ShardKey:
        """See `ClusterAdmin`; refused here."""
        self._refuse("shard")

    def _refuse(self, key: str) -> NoReturn:
        problem = "cannot be changed in mode inline, where all is one process"
        raise ConfigError("scale", key, problem, "mode local or cluster")
