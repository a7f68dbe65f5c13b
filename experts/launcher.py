"""How a pool's shards become Ray actors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray

from cluster.pool_messages import NAMESPACE, LaunchOrder
from experts.actor import ExpertShard, HostFactory, ShardLife
from experts.warm_actor import SpareShard

# Ray's options have no static type that mypy could follow.
Options = dict[str, Any]


class ActorLauncher:
    """A `ShardLauncher`: detached named actors, spread over the nodes.

    Each reserves for itself, not in a placement group: that has a fixed size, and shards come and
    go one by one.
    """

    def __init__(
        self,
        open_host: HostFactory,
        model_shape: Callable[[], tuple[int, int]],
        reserved: dict[str, float],
        labels: dict[str, str],
        life: ShardLife,
    ) -> None:
        self.serves = life.serves
        self._open_host = open_host
        self._model_shape = model_shape
        self._reserved = {name: amount for name, amount in reserved.items() if amount > 0}
        self._labels = labels
        self._life = life

    def model_shape(self) -> tuple[int, int]:
        """Return (number of MoE layers, number of experts)."""
        return self._model_shape()

    def launch(self, order: LaunchOrder) -> None:
        """Create the shard's detached actor under its name."""
        actor = ray.remote(ExpertShard).options(**self._options(order.key.actor_name(order.app)))
        actor.remote(order, self._open_host, self._life)

    def launch_spare(self, name: str) -> None:
        """Create the detached actor of a process that can become any shard."""
        actor = ray.remote(SpareShard).options(**self._options(name))
        actor.remote(self._open_host, self._life)

    def _options(self, name: str) -> Options:
        options: Options = {
            "name": name,
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "max_restarts": 0,
            "max_concurrency": 4,
            "num_cpus": self._reserved.get("CPU", 0),
            "num_gpus": self._reserved.get("GPU", 0),
            "scheduling_strategy": "SPREAD",
        }
        return options | ({"label_selector": self._labels} if self._labels else {})
