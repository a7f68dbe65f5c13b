"""What a pool has to do about its shards: said by `cluster.membership`, done by `cluster.pool`."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.placement import Placement
from cluster.pool_messages import HoldsLE, ShardKey


@dataclass(frozen=True, slots=True)
class Spawn:
    """Create the shard `key`, which loads `holds_LE`."""

    key: ShardKey
    holds_LE: HoldsLE


@dataclass(frozen=True, slots=True)
class Hold:
    """Tell the shard `key` what to hold from now on."""

    key: ShardKey
    holds_LE: HoldsLE


@dataclass(frozen=True, slots=True)
class Kill:
    """End the shard `key` and be sure that it is gone."""

    key: ShardKey


@dataclass(frozen=True, slots=True)
class Publish:
    """Let every rank have `placement`."""

    placement: Placement


Action = Spawn | Hold | Kill | Publish
