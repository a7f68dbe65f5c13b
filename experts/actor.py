"""An expert shard as a Ray actor: a thin shell around a host that loads and serves a slice.

The actor answers its pool while the host's thread computes; it ends itself when the host cannot
load, and when it is an orphan.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.errors import StaleEpochError, TrinityError
from cluster.membership import Scale, ShardReport
from cluster.pool_messages import NAMESPACE, LaunchOrder
from experts.orphan import OrphanWatch

logger = logging.getLogger(__name__)

WATCH_S = 0.5


class ShardHost(Protocol):
    """What loads a slice and serves it on one thread."""

    loaded_bytes: int
    total_bytes: int
    address: str
    """Where ranks connect, once loaded."""

    def load(self) -> None:
        """Read the slice; blocks. Raises `TrinityError`."""

    def serve(self) -> None:
        """Answer ranks until `stop`; blocks."""

    def stop(self) -> None:
        """End `serve`; thread-safe."""

    def heard_at_s(self) -> float:
        """Return when a rank was last heard, on the monotonic clock."""


HostFactory = Callable[[LaunchOrder, str], ShardHost]
"""Makes a host from its order and the address of the node it runs on."""


class ExpertShard:
    """The actor. Its methods run on Ray's threads, the host on one of its own."""

    def __init__(self, order: LaunchOrder, open_host: HostFactory, orphan_grace_s: float) -> None:
        logging.basicConfig(level=logging.INFO)
        self._order = order
        self._host = open_host(order, str(ray.util.get_node_ip_address()))  # type: ignore[no-untyped-call]
        self._epoch = order.epoch
        self._scale = order.scale
        self._ready = False
        self._problem = ""
        self._node = ray.get_runtime_context().get_node_id()
        self._orphan = OrphanWatch(orphan_grace_s, time.monotonic())
        threading.Thread(target=self._run, name="expert-shard", daemon=True).start()
        threading.Thread(target=self._watch, name="orphan-watch", daemon=True).start()

    def _run(self) -> None:
        try:
            self._host.load()
        except TrinityError as error:
            # The pool reads the problem once, and tries again later with another actor.
            logger.exception("this shard cannot load")
            self._problem = str(error)
            time.sleep(2.0)
            os._exit(1)
        self._ready = True
        self._host.serve()
        os._exit(0)

    def _watch(self) -> None:
        while not self._orphan.alone(time.monotonic()):
            time.sleep(WATCH_S)
            self._orphan.heard(self._host.heard_at_s())
        logger.warning("heard neither a pool nor a rank for too long; ending")
        self._host.stop()
        time.sleep(WATCH_S)
        os._exit(0)

    def describe(self) -> ShardReport:
        """Return what the pool has to know."""
        self._orphan.heard(time.monotonic())
        host = self._host
        return ShardReport(
            self._order.key,
            self._ready,
            host.loaded_bytes,
            host.total_bytes,
            host.address if self._ready else "",
            self._node,
            self._epoch,
            self._scale,
            self._order.token,
            self._problem,
        )

    def serve_under(self, epoch: int, scale: Scale) -> None:
        """Take note of the pool's epoch and scale. Raises `StaleEpochError` for an older one."""
        if epoch < self._epoch:
            raise StaleEpochError(f"epoch {epoch} is older than {self._epoch}")
        self._epoch, self._scale = epoch, scale


# Ray's handles and options have no static type that mypy could follow.
Handle = Any
Options = dict[str, Any]


class ActorLauncher:
    """A `ShardLauncher`: detached named actors, in a detached placement group when they reserve."""

    def __init__(
        self,
        open_host: HostFactory,
        model_shape: Callable[[], tuple[int, int]],
        reserved: dict[str, float],
        labels: dict[str, str],
        orphan_grace_s: float,
    ) -> None:
        self._open_host = open_host
        self._model_shape = model_shape
        self._reserved = {name: amount for name, amount in reserved.items() if amount > 0}
        self._labels = labels
        self._orphan_grace_s = orphan_grace_s

    def model_shape(self) -> tuple[int, int]:
        """Return (number of MoE layers, number of experts)."""
        return self._model_shape()

    def launch(self, order: LaunchOrder) -> None:
        """Create the shard's detached actor under its name."""
        actor = ray.remote(ExpertShard).options(
            name=order.key.actor_name(order.app),
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=0,
            max_concurrency=4,
            **self._placing(order),
        )
        actor.remote(order, self._open_host, self._orphan_grace_s)

    def _placing(self, order: LaunchOrder) -> Options:
        options: Options = {
            "num_cpus": self._reserved.get("CPU", 0),
            "num_gpus": self._reserved.get("GPU", 0),
        }
        if not self._reserved:
            options["scheduling_strategy"] = "SPREAD"
            return options | ({"label_selector": self._labels} if self._labels else {})
        group = self._group(order.app, order.key.count)
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, order.key.index)
        return options

    def _group(self, app: str, count: int) -> Handle:
        name = _group_name(app, count)
        try:
            return ray.util.get_placement_group(name)
        except ValueError:
            return placement_group(
                [dict(self._reserved)] * count,
                strategy="SPREAD",
                name=name,
                lifetime="detached",
                bundle_label_selector=[self._labels] * count if self._labels else None,
            )

    def release(self, app: str, count: int) -> None:
        """Remove the placement group of a generation."""
        try:
            remove_placement_group(ray.util.get_placement_group(_group_name(app, count)))
        except ValueError:
            return


def _group_name(app: str, count: int) -> str:
    return f"ExpertShards:{app}:{count}"
