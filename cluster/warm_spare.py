"""One process with its imports done, for the next shard that has to start: a Ray shell."""

from __future__ import annotations

import logging
import secrets
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.pool_messages import NAMESPACE, LaunchOrder, ShardReport, spare_prefix
from cluster.shard_handles import ShardHandles
from cluster.shard_launcher import ShardLauncher

logger = logging.getLogger("ray.serve")
"""Serve's own: it writes into the file of the replica, with the request's id."""

FOUND_ANSWER_S = 2.0

# Ray's handles have no static type that mypy could follow.
Handle = Any


class WarmSpare:
    """Keeps one such process while `enabled`. Used by the pool's thread."""

    def __init__(self, launcher: ShardLauncher, app: str, *, enabled: bool) -> None:
        self._launcher = launcher
        self._app = app
        self._enabled = enabled
        self._name = ""
        """Of the process that is kept; empty when there is none."""
        self._asked: Handle | None = None
        self._handle: Handle | None = None
        """Set once it has answered."""

    @property
    def is_ready(self) -> bool:
        """Whether the process could become a shard now."""
        return self._handle is not None

    def tend(self, *, quiet: bool) -> None:
        """Start one when there is none and the pool is quiet; see that it lives. Never waits."""
        if not self._enabled:
            return
        if not self._name and quiet:
            self._name = spare_prefix(self._app) + secrets.token_hex(4)
            self._launcher.launch_spare(self._name)
        if self._name:
            self._look()

    def _look(self) -> None:
        try:
            if self._asked is None:
                self._asked = ray.get_actor(self._name, NAMESPACE).describe.remote()
            elif ray.wait([self._asked], timeout=0)[0]:
                ray.get(self._asked)
                self._handle, self._asked = ray.get_actor(self._name, NAMESPACE), None
        except (RayError, ValueError) as error:
            logger.warning("the spare process is gone: %s", error)
            self._forget()

    def _forget(self) -> None:
        self._name, self._asked, self._handle = "", None, None

    def become(self, order: LaunchOrder, handles: ShardHandles) -> bool:
        """Let the spare be this shard; return whether there was one."""
        handle = self._handle
        if handle is None:
            return False
        handle.become.remote(order)
        handles.take_over(order.key, handle)
        self._forget()
        return True


def find_grown_spares(app: str, handles: ShardHandles) -> list[ShardReport]:
    """Let `handles` know the shards that an earlier pool made of spares; end idle spares."""
    reports = []
    for entry in ray.util.list_named_actors(all_namespaces=True):
        if entry["namespace"] == NAMESPACE and entry["name"].startswith(spare_prefix(app)):
            handle = ray.get_actor(entry["name"], NAMESPACE)
            report = _ask(handle)
            if report is None:
                ray.kill(handle, no_restart=True)
            else:
                handles.take_over(report.key, handle)
                reports.append(report)
    return reports


def _ask(handle: Handle) -> ShardReport | None:
    try:
        report: ShardReport | None = ray.get(handle.describe.remote(), timeout=FOUND_ANSWER_S)
    except RayError as error:
        logger.warning("a spare process does not answer: %s", error)
        return None
    return report
