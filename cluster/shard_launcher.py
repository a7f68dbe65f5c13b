"""How a pool has shards made without knowing what they are."""

from __future__ import annotations

from typing import Protocol

from cluster.pool_messages import LaunchOrder


class ShardLauncher(Protocol):
    """Knows how shards are made; given by the application."""

    serves: str
    """Names model and arithmetic: shards of another name are of no use to this application."""

    def model_shape(self) -> tuple[int, int]:
        """Return (number of MoE layers, number of experts)."""

    def launch(self, order: LaunchOrder) -> None:
        """Create the shard's detached actor under its name; does not wait until it has loaded."""

    def launch_spare(self, name: str) -> None:
        """Create a detached actor of this name that imports what shards need, and waits."""
