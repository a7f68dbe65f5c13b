"""What a pool that starts finds of an earlier one: shards that live, and the token they ask for."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from cluster.pool_messages import ShardKey, ShardReport
from cluster.shard_handles import SILENT_SHARD_S, ShardHandles
from cluster.warm_spare import find_grown_spares

logger = logging.getLogger("ray.serve")
"""Serve's own: it writes into the file of the replica, with the request's id."""

ADOPT_TIMEOUT_S = 2.0
"""How long a new pool waits for shards that it found to say what they hold."""


@dataclass(frozen=True, slots=True)
class Found:
    """Shards of an earlier pool."""

    reports: list[ShardReport]
    starting: list[ShardKey]
    """They live and do not answer yet."""


def find_shards(app: str, handles: ShardHandles) -> list[ShardKey]:
    """Return the living shards of an application; those made of spares are known to `handles`."""
    grown = find_grown_spares(app, handles)
    return handles.find() + [report.key for report in grown]


def find_living(app: str, handles: ShardHandles, serves: str) -> Found:
    """Ask the shards that live what they hold; end those of another model, or without a token.

    `serves` is what they are to compute, see `ShardLauncher.serves`. Blocks for some seconds.
    """
    reports: list[ShardReport] = []
    started_at_s = time.monotonic()
    keys = find_shards(app, handles)
    # One answer at least: it has the token that the others ask for too.
    while keys and time.monotonic() - started_at_s < (
        ADOPT_TIMEOUT_S if reports else SILENT_SHARD_S
    ):
        for key, report in handles.poll(keys):
            keys.remove(key)
            reports += [] if report is None else [report]
    for stranger in [each for each in reports if each.serves != serves]:
        logger.warning("shard %d holds experts of %s", stranger.key.index, stranger.serves)
        handles.kill(stranger.key)
        reports.remove(stranger)
    if reports:
        logger.info("found %d living shards", len(reports))
    else:
        # Shards that nobody can ask for their token serve nobody.
        keys = [key for key in keys if not handles.kill(key)]
    return Found(reports, keys)
