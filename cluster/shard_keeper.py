"""Does to shards what `cluster.membership` says: a Ray shell used by the pool's thread."""

from __future__ import annotations

import logging

from cluster.membership import Membership
from cluster.placement import Placement
from cluster.pool_actions import Action, Hold, Kill, Spawn
from cluster.pool_messages import LaunchOrder
from cluster.shard_handles import ShardHandles
from cluster.shard_launcher import ShardLauncher
from cluster.warm_spare import WarmSpare

logger = logging.getLogger("ray.serve")
"""Serve's own: it writes into the file of the replica, with the request's id."""

TOLD_S = 0.5
"""How long a new scale waits for one shard to have taken it."""


class ShardKeeper:
    """Creates, tells and ends the shards of an application."""

    def __init__(
        self,
        app: str,
        membership: Membership,
        handles: ShardHandles,
        launcher: ShardLauncher,
        spare: WarmSpare,
    ) -> None:
        self.token = ""
        """What ranks have to present to shards."""
        self.told_revision = 0
        """Of the scale that outlives this pool: at least one shard has it. Read by any thread."""
        self._app = app
        self._membership = membership
        self._handles = handles
        self._launcher = launcher
        self._spare = spare

    def do(self, action: Action) -> None:
        """Do it; waits, for `TOLD_S` at most, only for a shard to have taken a new scale."""
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
            self._tell(action.placement)

    def _order(self, spawn: Spawn) -> LaunchOrder:
        membership = self._membership
        return LaunchOrder(
            spawn.key,
            self._app,
            membership.epoch,
            membership.scale,
            self.token,
            spawn.holds_LE,
        )

    def _tell(self, placement: Placement) -> None:
        """Leave version and scale with the shards: for their replies and for the next pool."""
        scale = self._membership.scale
        handles = [self._handles.get(key) for key in self._membership.keys]
        told = [each.serve_under.remote(placement.version, scale) for each in handles if each]
        if self.told_revision < scale.revision and self._handles.any_answers(told, TOLD_S):
            self.told_revision = scale.revision
