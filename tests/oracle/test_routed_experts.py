"""Routed experts told over HTTP are those that the oracle chooses."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import httpx
import numpy as np
import numpy.typing as npt
import orjson
import pytest
import torch

from tests.oracle.afmoe_oracle import OracleWeights, oracle_forward
from tests.support.http import inline_server
from tests.support.serving import config_for, drain, one_thread, open_serving
from trinity_serve.api.routing import npy_of
from trinity_serve.engine.request import GenerationRequest, RoutedExperts, SamplingParams

Fields = dict[str, object]
PROMPT = np.random.default_rng(2).integers(13, 512, 70).tolist()
BODY: Fields = {
    "prompt": PROMPT,
    "max_tokens": 6,
    "temperature": 0,
    "ignore_eos": True,
    "return_token_ids": True,
    "return_routed_experts": True,
}


@pytest.fixture(scope="module")
def http(tiny_checkpoint: Path) -> Iterator[httpx.Client]:
    with (
        inline_server(config_for(tiny_checkpoint, num_shards=2)) as url,
        httpx.Client(base_url=url, timeout=30.0) as client,
    ):
        yield client


def rows_of(choice: Fields) -> npt.NDArray[np.uint8]:
    file = io.BytesIO(base64.b64decode(str(choice["routed_experts"])))
    rows: npt.NDArray[np.uint8] = np.load(file, allow_pickle=False)
    return rows


def complete(http: httpx.Client, body: Fields) -> Fields:
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return cast(Fields, response.json()["choices"][0])


def oracle_rows(checkpoint: Path, ids: list[int]) -> torch.Tensor:
    chosen = oracle_forward(OracleWeights.load(checkpoint), ids).topk_ids
    return torch.stack(list(chosen), dim=1).sort(dim=-1).values


def test_rows_of_prompt_and_outputs_are_told_whether_cached_or_not(
    http: httpx.Client, tiny_checkpoint: Path
) -> None:
    for _ in range(2):
        choice = complete(http, BODY)
        ids = PROMPT + cast(list[int], choice["token_ids"])[:-1]
        rows = rows_of(choice)
        assert rows.dtype == np.uint8
        wanted = oracle_rows(tiny_checkpoint, ids)
        assert torch.equal(torch.from_numpy(rows).long().sort(dim=-1).values, wanted)


def test_a_start_leaves_out_the_rows_before_it(http: httpx.Client) -> None:
    whole = rows_of(complete(http, BODY))
    part = rows_of(complete(http, BODY | {"routed_experts_prompt_start": 60}))
    assert np.array_equal(part, whole[60:])


def test_a_stream_tells_them_at_its_end_also_when_a_stop_string_ends_it(
    http: httpx.Client,
) -> None:
    whole = complete(http, BODY)
    stop = str(whole["text"])[2:4]
    stopped = complete(http, BODY | {"stop": stop})
    assert np.array_equal(rows_of(stopped), rows_of(whole)[: len(rows_of(stopped))])
    response = http.post("/v1/completions", json=BODY | {"stop": stop, "stream": True})
    parts = response.text.split("\n\n")[:-2]
    choices = [orjson.loads(part.removeprefix("data: "))["choices"][0] for part in parts]
    assert np.array_equal(rows_of(choices[-1]), rows_of(stopped))
    assert not any("routed_experts" in choice for choice in choices[:-1])


def test_chat_tells_them_too(http: httpx.Client) -> None:
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 3,
        "return_routed_experts": True,
    }
    response = http.post("/v1/chat/completions", json=body)
    reply = response.json()
    rows = rows_of(reply["choices"][0])
    assert len(rows) == reply["usage"]["total_tokens"] - 1


def test_a_replay_tells_each_row_once(tiny_checkpoint: Path) -> None:
    with one_thread():
        engine = open_serving(config_for(tiny_checkpoint), max_prefill_chunk=16).engine
        params = SamplingParams(
            max_tokens=6, seed=1, temperature=0.0, ignore_eos=True, routed_experts_from=0
        )
        request = GenerationRequest("r", 0, tuple(PROMPT), params)
        engine.submit(request)
        whole = [(event.token_id, event.routed_experts) for event in drain(engine)]
        emitted = tuple(token for token, _ in whole[:3] if token is not None)
        engine.submit(replace(request, attempt=1, emitted_ids=emitted))
        replayed = [event.routed_experts for event in drain(engine)]
    before = [routing for _, routing in whole[:3]]
    assert joined([*before, *replayed]) == joined([routing for _, routing in whole])


def joined(parts: list[RoutedExperts | None]) -> bytes:
    return npy_of([part for part in parts if part is not None])
