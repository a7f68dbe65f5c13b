"""Shards as a pool sees them, without processes: they do as they are told, when a test lets them.

Every step holds the pool to what must always be true.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cluster.membership import Membership
from cluster.placement import Placement
from cluster.pool_actions import Action, Hold, Kill, Publish, Spawn
from cluster.pool_messages import HoldsLE, ShardKey, ShardReport, SumsLE
from cluster.types import PlacementVersion

NUM_LAYERS = 2
NUM_EXPERTS = 8
EXPERT_BYTES = 10


def sums_of(holds_LE: HoldsLE) -> SumsLE:
    """Checksums as every shard of one checkpoint computes them."""
    numbers_LE = np.arange(1, holds_LE.size + 1, dtype=np.uint32).reshape(holds_LE.shape)
    return np.where(holds_LE, numbers_LE, 0).astype(np.uint32)


@dataclass
class _Shard:
    ordered_LE: HoldsLE
    holds_LE: HoldsLE
    node: str
    ready: bool = False


@dataclass
class World:
    """A pool and the shards it made."""

    pool: Membership
    now_s: float = 0.0
    shards: dict[ShardKey, _Shard] = field(default_factory=dict)
    peaks: dict[ShardKey, int] = field(default_factory=dict)
    last: PlacementVersion | None = None
    nodes: list[str] = field(default_factory=lambda: ["node"])
    """Where shards may be; a new one goes where there are fewest, as Ray spreads actors."""

    @property
    def living(self) -> list[ShardKey]:
        """Shards whose process lives, by seat."""
        return sorted(self.shards)

    def on_node(self, name: str) -> list[ShardKey]:
        """Shards whose process lives on a node, by seat."""
        return [key for key in self.living if self.shards[key].node == name]

    def lose_node(self, name: str) -> None:
        """A node is gone with all that ran there; Ray says so of each shard."""
        self.nodes.remove(name)
        for key in self.on_node(name):
            self.die(key)

    def together(self) -> int:
        """How many pairs of placed copies of one expert are in one process or on one node."""
        placement = self.pool.placement
        assert placement is not None
        nodes = [
            self.shards[ShardKey(info.shard_id, info.incarnation)].node for info in placement.shards
        ]
        num_pairs = 0
        for copies in placement.copies_LEC.reshape(-1, placement.copies_LEC.shape[2]).tolist():
            where = [nodes[copy] for copy in copies if copy >= 0]
            num_pairs += len(where) - len(set(where))
        return num_pairs

    def holds(self, key: ShardKey) -> HoldsLE:
        """What a shard has loaded."""
        return self.shards[key].holds_LE.copy()

    def report(self, key: ShardKey) -> ShardReport:
        """What a shard says."""
        shard, epoch, scale = self.shards[key], self.pool.epoch, self.pool.scale
        sums_LE = sums_of(shard.holds_LE) if shard.ready else None
        address = f"unix:/{key.incarnation}"
        num_bytes = EXPERT_BYTES * int(shard.holds_LE.sum())
        return ShardReport(
            key,
            shard.ready,
            num_bytes,
            num_bytes,
            address,
            shard.node,
            epoch,
            scale,
            sums_LE=sums_LE,
        )

    def tick(self) -> list[Action]:
        """Let the pool act once; shards hear of it, and free at once what they may."""
        actions = self.pool.actions(self.now_s)
        for action in actions:
            self._do(action)
        self._check_coverage()
        return actions

    def _do(self, action: Action) -> None:
        if isinstance(action, Spawn):
            # Never two lives of one seat.
            assert action.key.index not in {key.index for key in self.shards}
            nothing_LE = np.zeros_like(action.holds_LE)
            node = min(self.nodes, key=lambda name: (len(self.on_node(name)), name))
            self.shards[action.key] = _Shard(action.holds_LE, nothing_LE, node)
        elif isinstance(action, Hold):
            shard = self.shards[action.key]
            shard.ordered_LE = action.holds_LE
            shard.holds_LE = shard.holds_LE & action.holds_LE
            self.pool.reported(self.report(action.key), self.now_s)
        elif isinstance(action, Kill):
            self.die(action.key)
        else:
            self._check_placement(action)

    def _check_placement(self, action: Publish) -> None:
        placement = action.placement
        assert self.last is None or placement.version > self.last
        self.last = placement.version
        assert len({shard.shard_id for shard in placement.shards}) == len(placement.shards)
        for info in placement.shards:
            assert self.shards[ShardKey(info.shard_id, info.incarnation)].ready
        # Never two copies of an expert in one process.
        ordered_LEC = np.sort(placement.copies_LEC, axis=2)
        same_LEC = (np.diff(ordered_LEC, axis=2) == 0) & (ordered_LEC[:, :, 1:] >= 0)
        assert not same_LEC.any()

    def _check_coverage(self) -> None:
        """What pool and placement say is covered is really held by a ready shard."""
        placement = self.pool.placement
        if placement is None or not self.pool.covered:
            return
        assert (self.covered_by(placement)).all()

    def covered_by(self, placement: Placement) -> HoldsLE:
        """(L, E): whether the first copy that lives really holds the expert."""
        held_LE = np.zeros((NUM_LAYERS, NUM_EXPERTS), np.bool_)
        for position, info in enumerate(placement.shards):
            shard = self.shards.get(ShardKey(info.shard_id, info.incarnation))
            if shard is not None and shard.ready:
                named_LE = (placement.copies_LEC == position).any(axis=2)
                held_LE |= named_LE & shard.holds_LE
        return held_LE

    def load(self, key: ShardKey) -> None:
        """Let one shard load all it was told to, and say so."""
        shard = self.shards[key]
        peak = int((shard.holds_LE | shard.ordered_LE).sum())
        self.peaks[key] = max(self.peaks.get(key, 0), peak)
        shard.holds_LE, shard.ready = shard.ordered_LE.copy(), True
        self.pool.reported(self.report(key), self.now_s)

    def load_all(self) -> None:
        """Let every shard load."""
        for key in self.living:
            self.load(key)

    def die(self, key: ShardKey) -> None:
        """End a shard's process; the pool hears of it."""
        del self.shards[key]
        self.pool.died(key, self.now_s)

    def wait(self, seconds: float) -> list[ShardKey]:
        """Let time pass; return who was ended."""
        ended: list[ShardKey] = []
        for _ in range(int(seconds / 0.5) + 1):
            self.now_s += 0.5
            ended += [action.key for action in self.tick() if isinstance(action, Kill)]
        return ended

    def settle(self) -> None:
        """Load and let time pass until nothing is left to do."""
        for _ in range(200):
            self.tick()
            self.load_all()
            self.now_s += 0.5
            if self.pool.settled and not self.tick():
                return
        raise AssertionError(f"does not settle: {self.pool.progress()}")
