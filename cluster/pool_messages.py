"""What pool, shards and ranks tell each other through Ray. Plain data, without Ray."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.placement import Placement
from cluster.types import PlacementVersion

NAMESPACE = "trinity"
"""Ray namespace of shards: Serve's own default is an anonymous one per job."""

HoldsLE = npt.NDArray[np.bool_]
"""(L, E): which experts of which MoE layer."""
SumsLE = npt.NDArray[np.uint32]
"""(L, E): checksum of the tensor bytes of each expert that is held, 0 for one that is not."""


@dataclass(frozen=True, slots=True, order=True)
class ShardKey:
    """Names one life of one shard: its seat, and the incarnation, which no other life ever had."""

    index: int
    incarnation: int

    def actor_name(self, app: str) -> str:
        """Return the name under which the shard is found again after a pool restart."""
        return f"ExpertShard:{app}:{self.index}:{self.incarnation}"

    @classmethod
    def from_actor_name(cls, name: str, app: str) -> ShardKey | None:
        """Return the key in `name`, or None when it does not name a shard of `app`."""
        prefix = f"ExpertShard:{app}:"
        if not name.startswith(prefix):
            return None
        index, _, incarnation = name.removeprefix(prefix).partition(":")
        return cls(int(index), int(incarnation))


def spare_prefix(app: str) -> str:
    """Return how the actor names of processes begin that wait to become a shard of `app`."""
    return f"SpareShard:{app}:"


@dataclass(frozen=True, slots=True)
class Target:
    """How many shards there shall be, and how many copies of experts."""

    num_shards: int
    num_replicas: int = 1
    replica_bytes: int = 0
    """Of one copy more for the experts whose loss would cost most; over all shards."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What is wanted, and the configured target that this was decided under."""

    target: Target
    configured: Target
    operation: str = ""
    """The manual operation that asked for it; empty when the configuration counts."""
    ranks_by_hand: bool = False
    """Whether somebody has set the number of ranks: it is left alone then."""
    revision: int = 0
    """Grows with every change: of those that shards were told, the latest counts."""

    @classmethod
    def of(cls, configured: Target) -> Scale:
        """Return the scale of a configuration that nobody has overruled."""
        return cls(configured, configured)

    def reconfigured(self, configured: Target) -> Scale:
        """Return the scale after the configuration says `configured`.

        The configuration counts when it has changed; otherwise what was found stays.
        """
        return self if configured == self.configured else Scale.of(configured)


@dataclass(frozen=True, slots=True)
class LaunchOrder:
    """What a new shard has to know."""

    key: ShardKey
    app: str
    epoch: int
    scale: Scale
    token: str
    """What ranks have to present."""
    holds_LE: HoldsLE
    """What it has to load before it is ready."""


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What a shard says about itself; the state a restarted pool finds again."""

    key: ShardKey
    ready: bool
    loaded_bytes: int
    total_bytes: int
    address: str
    node: str
    epoch: int
    scale: Scale
    token: str = ""
    """What a rank has to present."""
    problem: str = ""
    """Why it cannot load. One that was never ready then ends itself; others serve on."""
    label: str = ""
    """The failure domain around the node, when one is configured."""
    pid: int = 0
    sums_LE: SumsLE | None = None
    """What it holds; None: as it said before."""
    revision: int = 0
    """Grows with every change of what it holds."""
    idle_s: float = 0.0
    """How long its compute loop has made no turn, beyond what it announced."""
    serves: str = ""
    """Whose experts it holds; see `ShardLauncher.serves`."""


@dataclass(frozen=True, slots=True)
class RankLoad:
    """What makes requests of one rank wait."""

    waiting_tokens: int
    """Prompt tokens that no step has taken yet."""
    kv_usage: float
    """Share of the fuller KV pool in use, 0 to 1."""


@dataclass(frozen=True, slots=True)
class RankSight:
    """What a rank that asks the pool for news knows already."""

    rank: str
    """Names this life of the rank."""
    placement: PlacementVersion | None
    num_subscribers: int
    load: RankLoad = RankLoad(0, 0.0)


@dataclass(frozen=True, slots=True)
class PoolView:
    """What a rank learns from the pool."""

    placement: Placement | None
    """None: no newer one than the rank knows."""
    subscribers: tuple[str, ...]
    """Where ingresses take events, as text."""
    token: str
    """What shards ask for."""
