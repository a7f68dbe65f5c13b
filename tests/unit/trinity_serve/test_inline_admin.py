"""What `inline` mode tells of its one process, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.errors import ConfigError
from cluster.placement import Placement, ShardInfo
from cluster.types import PlacementVersion, ShardId
from tests.fakes.scripted_engine import ScriptedEngine
from trinity_serve.engine.request import EngineStats
from trinity_serve.inline_admin import InlineAdmin

SHARDS = tuple(ShardInfo(ShardId(index), f"inproc:{index}", 40 + index) for index in range(3))
PLACEMENT = Placement.sliced(PlacementVersion(1, 1), SHARDS, 2, 9)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def admin(clock: Clock) -> InlineAdmin:
    engine = ScriptedEngine(numbers=EngineStats(num_running=2, kv_usage=0.25))
    return InlineAdmin(PLACEMENT, engine, clock)


async def test_every_shard_is_ready_and_covers_its_slice(admin: InlineAdmin) -> None:
    status = await admin.status()
    assert status.covered
    assert [(shard.shard, shard.state) for shard in status.shards] == [
        (0, "ready"),
        (1, "ready"),
        (2, "ready"),
    ]
    assert [shard.num_experts_held for shard in status.shards] == [6, 6, 6]


async def test_the_engine_is_the_one_rank(admin: InlineAdmin) -> None:
    (rank,) = await admin.ranks()
    assert (rank.num_running, rank.kv_usage, rank.not_ready) == (2, 0.25, "")


async def test_rows_are_shown_and_fade(admin: InlineAdmin, clock: Clock) -> None:
    rows_LE = np.zeros((2, 9))
    rows_LE[1, 4] = 8.0
    admin.reported(rows_LE)
    told = await admin.experts()
    assert (told.placement, told.max_rows) == ("1.1", 8.0)
    assert told.levels_LE.index(255) == 13
    clock.now_s += 60.0
    assert (await admin.experts()).max_rows == pytest.approx(4.0)


async def test_nothing_can_be_changed(admin: InlineAdmin) -> None:
    assert not admin.can_change_shards
    with pytest.raises(ConfigError, match="mode local or cluster"):
        await admin.kill_shard(0, None)
    with pytest.raises(ConfigError, match="mode local or cluster"):
        await admin.drain_shard(0, None)
    with pytest.raises(ConfigError, match="mode local or cluster"):
        await admin.scale(None, "")
    with pytest.raises(ConfigError, match="mode local or cluster"):
        await admin.scale_ranks(2)
