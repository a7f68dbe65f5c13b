"""The load generator counts tokens, times and errors of any endpoint's streams."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes.endpoint import Behaviour, FakeEndpoint, fake_endpoint
from tests.support.load import (
    LoadResult,
    StreamResult,
    completion_body,
    random_prompts,
    run_load,
    run_stream,
)


async def test_each_stream_gets_its_own_tokens_whatever_the_chunks_are_cut_like() -> None:
    prompts = random_prompts(5, 6, seed=1)
    results = []
    for split in (False, True):
        async with fake_endpoint(FakeEndpoint(split_events=split)) as endpoint:
            load = await asyncio.to_thread(run_load, endpoint.url, "m", prompts, 7)
            assert sorted(body["prompt"] for body in endpoint.bodies) == sorted(prompts)  # type: ignore[type-var]
        results.append([stream.token_ids for stream in load.streams])
        assert all(len(stream.token_times_s) == 7 for stream in load.streams)
        assert {stream.finish_reason for stream in load.streams} == {"length"}
    assert results[0] == results[1]
    assert len({tuple(ids) for ids in results[0]}) == 5


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (Behaviour(status=503), "status 503"),
        (Behaviour(cut_after=3), "BrokenStreamError"),
        (Behaviour(error_after=3), "the engine has failed"),
        (Behaviour(pause_after=2, pause_s=30.0), "TimeoutError"),
    ],
)
async def test_a_stream_that_fails_says_how(behaviour: Behaviour, said: str) -> None:
    async with fake_endpoint(FakeEndpoint(behaviour=lambda _: behaviour)) as endpoint:
        result = await run_stream(endpoint.url, completion_body("m", [1], 8), 0.5)
    error = result.error or ""
    assert said in error or ("cut" in said and "Reset" in error)


async def test_a_run_with_a_failed_stream_has_no_figures() -> None:
    async def run(endpoint: FakeEndpoint) -> LoadResult:
        return await asyncio.to_thread(run_load, endpoint.url, "m", [[1], [2]], 8)

    failing = FakeEndpoint(behaviour=lambda number: Behaviour(status=500 if number else 200))
    async with fake_endpoint(failing) as endpoint:
        with pytest.raises(RuntimeError, match="1 of 2 streams failed: status 500"):
            await run(endpoint)


def test_the_rate_counts_only_while_all_streams_decode() -> None:
    early = StreamResult(0.0, [1.0, 2.0, 3.0, 4.0])
    late = StreamResult(0.0, [2.0, 3.0, 4.0])
    load = LoadResult((early, late), wall_s=4.0, cpu_s=0.0)
    assert load.decode_tokens_per_s == 4 / 2.0
    assert load.first_token_s == 1.5
    assert load.gap_s(0.5) == load.gap_s(1.0) == 1.0


def test_prompts_of_another_seed_share_nothing() -> None:
    one, other = random_prompts(4, 64, seed=1), random_prompts(4, 64, seed=2)
    assert one == random_prompts(4, 64, seed=1)
    assert not {tuple(prompt[:16]) for prompt in one} & {tuple(prompt[:16]) for prompt in other}


async def test_a_key_in_the_url_goes_into_its_header_and_nowhere_else() -> None:
    async with fake_endpoint(FakeEndpoint()) as endpoint:
        url = endpoint.url.replace("://", "://:sk-1@")
        load = await asyncio.to_thread(run_load, url, "m", [[1, 2]], 3)
        assert len(load.streams[0].token_times_s) == 3
        assert endpoint.heads[0].count("sk-1") == 1
        assert "\r\nauthorization: bearer sk-1\r\n" in endpoint.heads[0]
