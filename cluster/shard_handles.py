"""The shards of an application as Ray actors: found by name, asked how they are, ended for sure."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from cluster.pool_messages import NAMESPACE, ShardKey, ShardReport

logger = logging.getLogger("ray.serve")
"""Serve's own: it writes into the file of the replica, with the request's id."""

TURN_S = 0.25
"""How long one look at all shards takes at most."""
SILENT_SHARD_S = 20.0
"""A shard actor that answers no call for so long is ended: its process hangs."""
KILL_TIMEOUT_S = 10.0

# Ray's handles have no static type that mypy could follow.
Handle = Any


class ShardHandles:
    """Actor handles by shard, with at most one question open to each."""

    def __init__(self, app: str) -> None:
        self._app = app
        self._handles: dict[ShardKey, Handle] = {}
        self._asked: dict[ShardKey, tuple[Handle, float]] = {}
        self._seen: dict[ShardKey, int] = {}
        """The last revision of what it holds that a shard has told."""
        self._pids: dict[ShardKey, int] = {}
        """Of shards on this node."""
        self.answered: set[ShardKey] = set()

    def find(self) -> list[ShardKey]:
        """Return the shards of the application that Ray knows to live."""
        names = ray.util.list_named_actors(all_namespaces=True)
        found = [
            ShardKey.from_actor_name(entry["name"], self._app)
            for entry in names
            if entry["namespace"] == NAMESPACE
        ]
        return sorted(key for key in found if key is not None)

    def take_over(self, key: ShardKey, handle: Handle) -> None:
        """Know a shard by an actor that has another name."""
        self._handles[key] = handle

    def get(self, key: ShardKey) -> Handle | None:
        """Return the shard's handle, or None when Ray has no such actor (any more)."""
        if key not in self._handles:
            try:
                self._handles[key] = ray.get_actor(key.actor_name(self._app), NAMESPACE)
            except ValueError:
                return None
        return self._handles[key]

    def poll(self, keys: list[ShardKey]) -> list[tuple[ShardKey, ShardReport | None]]:
        """Ask every shard how it is; return the answers, None for a shard that is gone.

        Blocks for `TURN_S` at most.
        """
        gone: list[tuple[ShardKey, ShardReport | None]] = []
        for key in keys:
            handle = self.get(key)
            if handle is None:
                gone.append((key, None))
            elif key not in self._asked:
                self._asked[key] = (
                    handle.describe.remote(self._seen.get(key, 0)),
                    time.monotonic(),
                )
        refs = {ref: key for key, (ref, _) in self._asked.items() if key in keys}
        if not refs:
            return gone
        done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=TURN_S)
        answers = [(refs[ref], self._answer(refs[ref], ref)) for ref in done]
        self._end_silent(keys)
        return gone + answers

    def _answer(self, key: ShardKey, ref: Handle) -> ShardReport | None:
        self._asked.pop(key, None)
        try:
            report = cast(ShardReport, ray.get(ref, timeout=TURN_S))
        except (RayActorError, GetTimeoutError) as error:
            logger.warning("%s: %s", key.actor_name(self._app), error)
            self.forget(key)
            return None
        self.answered.add(key)
        self._seen[key] = report.revision
        if report.node == ray.get_runtime_context().get_node_id():
            self._pids[key] = report.pid
        return report

    def _end_silent(self, keys: list[ShardKey]) -> None:
        """End shards that once answered and do not any more; a pending actor may take its time."""
        oldest_s = time.monotonic() - SILENT_SHARD_S
        silent = [
            key
            for key, (_, asked_at_s) in self._asked.items()
            if key in keys and key in self.answered and asked_at_s < oldest_s
        ]
        for key in silent:
            self.end(key)
            del self._asked[key]  # the next question tells whether it is gone

    def end(self, key: ShardKey) -> None:
        """Begin to end a shard; `poll` tells when it is gone. Its node may be cut off: no waiting.

        A shard on a lost node is gone once Ray counts the node as dead.
        """
        handle = self.get(key)
        if handle is not None:
            ray.kill(handle, no_restart=True)
        if key in self._pids:
            kill_shard_process(self._pids[key])

    def kill(self, key: ShardKey) -> bool:
        """End a shard and wait; return whether it is certainly gone."""
        handle = self.get(key)
        if handle is None:
            return True
        self.end(key)
        try:
            ray.get(handle.describe.remote(0), timeout=KILL_TIMEOUT_S)
        except RayActorError:
            self.forget(key)
            return True
        except GetTimeoutError:
            logger.error("%s does not end", key.actor_name(self._app))
        return False

    def any_answers(self, answers: list[Handle], within_s: float) -> bool:
        """Wait until one of these calls has been answered; return whether it was in time."""
        return bool(answers and ray.wait(answers, num_returns=1, timeout=within_s)[0])

    def forget(self, key: ShardKey) -> None:
        """Drop what is kept of a shard that is gone."""
        self._handles.pop(key, None)
        self._asked.pop(key, None)
        self._seen.pop(key, None)
        self._pids.pop(key, None)
        self.answered.discard(key)


def kill_shard_process(pid: int) -> None:
    """End a shard's process on this node, which hears no request to end when it is stopped."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if command.startswith((b"ray::ExpertShard", b"ray::SpareShard")):
            os.kill(pid, signal.SIGKILL)
    except OSError:
        return  # gone, or a system without /proc
