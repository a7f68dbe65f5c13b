"""The overload load counts what was made for whom, on a fake endpoint that refuses some."""

from __future__ import annotations

import asyncio

from tests.bench.bench_overload import OverloadPlan, load
from tests.fakes.endpoint import NORMAL, Behaviour, FakeEndpoint, fake_endpoint

PLAN = OverloadPlan(for_s=0.3, output_tokens=8)


async def test_refusals_are_told_apart_from_what_was_served() -> None:
    refusing = FakeEndpoint(behaviour=lambda n: Behaviour(status=503) if n % 3 == 0 else NORMAL)
    async with fake_endpoint(refusing) as endpoint:
        seen = await asyncio.to_thread(load, endpoint.url, "m", 4, PLAN, 1)
    served = len(endpoint.bodies) - len(seen.refusals_s)
    assert seen.failures == []
    assert seen.refusals_s
    assert served > 0
    assert seen.tokens == 8 * served
    assert len(seen.gaps_s) == 7 * served
    assert len({str(body["prompt"]) for body in endpoint.bodies}) == len(endpoint.bodies)


async def test_a_stream_that_breaks_is_a_failure_and_not_goodput() -> None:
    breaking = FakeEndpoint(behaviour=lambda _: Behaviour(cut_after=2))
    async with fake_endpoint(breaking) as endpoint:
        seen = await asyncio.to_thread(load, endpoint.url, "m", 1, PLAN, 1)
    assert seen.tokens == 0
    assert len(seen.failures) == len(endpoint.bodies)
