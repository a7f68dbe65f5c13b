"""What the pool tells shards and ranks through Ray. Plain data, without Ray."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.membership import Scale, ShardKey
from cluster.placement import Placement

NAMESPACE = "trinity"
"""Ray namespace of shards: Serve's own default is an anonymous one per job."""


@dataclass(frozen=True, slots=True)
class LaunchOrder:
    """What a new shard has to know."""

    key: ShardKey
    app: str
    epoch: int
    scale: Scale
    token: str
    """What ranks have to present."""


@dataclass(frozen=True, slots=True)
class PoolView:
    """What a rank learns from the pool."""

    placement: Placement | None
    """None: no newer one than the rank knows."""
    subscribers: tuple[str, ...]
    """Where ingresses take events, as text."""
    token: str
    """What shards ask for."""
