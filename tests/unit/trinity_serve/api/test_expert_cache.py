"""The expert map as it is sent: once a second from the pool, without what the caller has."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass, field

import orjson
import pytest

from cluster.errors import NotReadyError
from cluster.expert_map import ExpertMap
from trinity_serve.api.expert_cache import FRESH_S, ExpertCache


@dataclass
class Pool:
    placement: str = "1.1"
    num_asked: int = 0
    failure: Exception | None = None
    now_s: float = field(default=50.0)

    async def experts(self) -> ExpertMap:
        self.num_asked += 1
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        return ExpertMap(self.placement, 1, 2, 1, 9.0, bytes([255, 3]), bytes([0, 0, 1, 0]))

    def clock(self) -> float:
        return self.now_s


@pytest.fixture
def pool() -> Pool:
    return Pool()


@pytest.fixture
def cache(pool: Pool) -> ExpertCache:
    return ExpertCache(pool.experts, pool.clock)


async def test_levels_and_copies_are_told(cache: ExpertCache) -> None:
    told = orjson.loads(await cache.body(""))
    assert base64.b64decode(told["levels"]) == bytes([255, 3])
    assert base64.b64decode(told["copies"]) == bytes([0, 0, 1, 0])
    assert (told["num_moe_layers"], told["num_experts"], told["num_copies"]) == (1, 2, 1)


async def test_copies_are_left_out_for_a_caller_who_has_them(cache: ExpertCache) -> None:
    assert orjson.loads(await cache.body("1.1"))["copies"] is None
    assert orjson.loads(await cache.body("1.0"))["copies"] is not None


async def test_callers_of_one_second_share_one_question(cache: ExpertCache, pool: Pool) -> None:
    await asyncio.gather(*(cache.body("") for _ in range(10)))
    assert pool.num_asked == 1
    pool.now_s += FRESH_S + 0.01
    pool.placement = "1.2"
    assert orjson.loads(await cache.body("1.1"))["placement"] == "1.2"
    assert pool.num_asked == 2


async def test_a_failure_is_told_and_asked_again(cache: ExpertCache, pool: Pool) -> None:
    pool.failure = NotReadyError("the pool is away")
    with pytest.raises(NotReadyError):
        await cache.body("")
    pool.failure = None
    assert orjson.loads(await cache.body(""))["placement"] == "1.1"


async def test_all_who_wait_for_a_silent_pool_are_told_at_once(
    cache: ExpertCache, pool: Pool
) -> None:
    pool.failure = NotReadyError("the pool does not answer")
    asked = (cache.body("") for _ in range(5))
    told = await asyncio.gather(*asked, return_exceptions=True)
    assert [str(each) for each in told] == [str(pool.failure)] * 5
    assert pool.num_asked == 1
