"""A rank among fake shards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from router.config import DispatchConfig
from tests.fakes.shard_world import FakeRank, World


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def rank(world: World) -> Iterator[FakeRank]:
    """A rank that nothing has been published to yet."""
    config = DispatchConfig(call_timeout_s=3.0, coverage_grace_s=5.0)
    rank = FakeRank(world, config)
    yield rank
    rank.dispatcher.close()
