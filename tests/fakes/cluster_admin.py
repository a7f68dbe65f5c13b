"""A cluster for the admin routes without processes: any shape, any state, traffic by the second."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from cluster.errors import ConfigError
from cluster.expert_map import ExpertMap, describe_experts
from cluster.load_stats import LoadLE
from cluster.placement import Placement, ShardInfo
from cluster.pool_messages import ShardKey, Target
from cluster.pool_status import FailureStatus, OperationStatus, PoolStatus, ShardStatus
from cluster.types import PlacementVersion, ShardId
from trinity_serve.api.ranks import RankStatus
from trinity_serve.engine.request import EngineStats

MOVES_PER_MAP = 40


@dataclass
class FakeCluster:
    """A `ClusterAdmin` whose traffic and placement change with every map that is asked for."""

    num_shards: int = 8
    num_moe_layers: int = 54
    num_experts: int = 256
    can_change_shards: bool = True
    states: list[str] = field(default_factory=list)
    incarnations: list[int] = field(default_factory=list)
    failures: list[FailureStatus] = field(default_factory=list)
    orders: list[tuple[str, int, int | None]] = field(default_factory=list)
    num_maps: int = 0

    def __post_init__(self) -> None:
        self.states = ["ready"] * self.num_shards
        self.incarnations = list(range(1, self.num_shards + 1))
        self._random = np.random.default_rng(7)
        hot_LE = self._random.pareto(1.6, (self.num_moe_layers, self.num_experts))
        self._rows_LE: LoadLE = 100.0 * (0.05 + hot_LE)
        self._placement = Placement.sliced(
            PlacementVersion(1, 1),
            tuple(ShardInfo(ShardId(seat), f"unix:/{seat}", seat) for seat in self.seats),
            self.num_moe_layers,
            self.num_experts,
        )

    @property
    def seats(self) -> range:
        """Every seat."""
        return range(self.num_shards)

    async def status(self) -> PoolStatus:
        """See `ClusterAdmin`."""
        num_each = self.num_moe_layers * self.num_experts // self.num_shards
        shards = tuple(
            ShardStatus(seat, self.incarnations[seat], self.states[seat], "n1", "", *2 * [num_each])
            for seat in self.seats
        )
        target = Target(self.num_shards)
        num_lost = sum(state != "ready" for state in self.states)
        return PoolStatus(
            summary="as the test says",
            placement=str(self._placement.version),
            covered=num_lost == 0,
            settled=True,
            target=target,
            configured=target,
            num_ranks=2,
            num_uncovered=num_lost * num_each,
            num_spares=0,
            num_moved_for_load=0,
            has_spare=False,
            num_loads_left=0,
            num_frees_left=0,
            operation=None,
            shards=shards,
            failures=tuple(self.failures),
        )

    async def ranks(self) -> list[RankStatus]:
        """See `ClusterAdmin`."""
        stats = EngineStats(num_running=12, num_waiting=3, num_waiting_tokens=800, kv_usage=0.42)
        stats = replace(stats, generation_tokens=400 * self.num_maps)
        return [RankStatus.of(f"rank-{number}", stats) for number in range(2)]

    async def experts(self) -> ExpertMap:
        """See `ClusterAdmin`."""
        self.num_maps += 1
        self._rows_LE *= self._random.uniform(0.9, 1.1, self._rows_LE.shape)
        self._move()
        return describe_experts(self._placement, self._rows_LE)

    def _move(self) -> None:
        copies_LEC = self._placement.copies_LEC.copy()
        cells = self._random.integers(0, copies_LEC.size, MOVES_PER_MAP)
        copies_LEC.flat[cells] = self._random.integers(0, self.num_shards, MOVES_PER_MAP)
        for seat in self.seats:
            if self.states[seat] != "ready":
                copies_LEC[copies_LEC == seat] = -1
        version = PlacementVersion(1, self.num_maps + 1)
        self._placement = replace(self._placement, version=version, copies_LEC=copies_LEC)

    async def scale(self, target: Target | None, operation_id: str) -> OperationStatus:
        """See `ClusterAdmin`; refused."""
        raise ConfigError("scale", "num_shards", "cannot change", "what is there")

    async def scale_ranks(self, num_ranks: int) -> None:
        """See `ClusterAdmin`; refused."""
        raise ConfigError("scale", "num_ranks", "cannot change", "what is there")

    async def kill_shard(self, shard: int, incarnation: int | None) -> ShardKey:
        """Note the order, and let the shard be found dead."""
        self.orders.append(("kill", shard, incarnation))
        self.states[shard] = "dead"
        self.failures.insert(0, FailureStatus(0.1, shard, self.incarnations[shard], "killed"))
        return ShardKey(shard, self.incarnations[shard])

    async def drain_shard(self, shard: int, incarnation: int | None) -> ShardKey:
        """Note the order."""
        self.orders.append(("drain", shard, incarnation))
        self.states[shard] = "draining"
        return ShardKey(shard, self.incarnations[shard])
