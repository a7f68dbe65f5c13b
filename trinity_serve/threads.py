"""How many kernel threads a process takes, so that ranks and shards of one host share its cores.

A rank computes while shards wait for it, and waits while they compute: it may take every core.
Shards compute at the same time as one another: together they take every core once.
"""

from __future__ import annotations

import os

from trinity_serve.config import ServeConfig


def num_cores() -> int:
    """Return the cores this process may run on."""
    return len(os.sched_getaffinity(0))


def rank_threads(config: ServeConfig, cores: int) -> int:
    """Return the threads of an attention rank (and, inline, of everything)."""
    return config.attention.num_threads or cores


def shard_threads(config: ServeConfig, cores: int) -> int:
    """Return the threads of an expert shard: its share of the host, if all shards were on it."""
    return config.experts.num_threads or max(1, cores // config.experts.num_shards)
