"""A stream that loses its rank goes on elsewhere as if nothing had been, whatever was asked for.

In the midst of thought, of a grammar, of a call's name or arguments: the other rank makes grammar
and budget again from the tokens, and the ingress keeps its parsers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.block_endpoints import open_service
from tests.support.composition import Case, Said, cases_of_all_pairs, said_of_stream
from tests.support.serving import one_thread
from tests.support.two_ranks import cut_id, two_ranks
from trinity_serve.api.service import ModelService


@pytest.fixture(scope="module")
def service(tiny_checkpoint: Path) -> Iterator[ModelService]:
    with one_thread(), open_service(tiny_checkpoint, 1000) as service:
        yield service


async def said(http: httpx.AsyncClient, case: Case, cut: int | None = None) -> list[Said]:
    body = case.body() | {"stream": True}
    if cut is not None:
        body["request_id"] = cut_id(cut)
    answer = await http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return said_of_stream(answer.text, 3 if case["choices"] == "three" else 1)


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
async def test_a_replay_from_anywhere_says_what_the_undisturbed_stream_says(
    tiny_checkpoint: Path, service: ModelService, tmp_path: Path, every: int
) -> None:
    """Ranks are lost after no token, after `every` so many, and so on."""
    async with two_ranks(tiny_checkpoint, service, tmp_path) as (ranks, http):
        for case in cases_of_all_pairs():
            undisturbed = await said(http, case)
            longest = max(len(each.token_ids) for each in undisturbed)
            cuts = range(0, longest, every)
            before = ranks.client.num_replays
            replayed = await asyncio.gather(*(said(http, case, cut) for cut in cuts))
            for cut, each in zip(cuts, replayed, strict=True):
                assert each == undisturbed, f"{case} after {cut} tokens"
            # More where a busy machine made a stream late, which is a loss like any.
            assert ranks.client.num_replays - before >= len(cuts)
        assert ranks.num_lost > 0
