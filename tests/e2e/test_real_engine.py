"""A real engine over HTTP: transformers' tokens, freed resources, a full queue."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import openai
import orjson
import pytest

from experts.checkpoint import Checkpoint
from experts.config import fingerprint_of
from experts.kernels import load_expert_kernels
from tests.e2e.conftest import RunningServer, eventually
from tests.support.greedy import assert_same_tokens, random_prompts, transformers_tokens
from tests.support.http import inline_server
from trinity_serve.config import parse_serve_args

PROMPTS = random_prompts()
NUM_TOKENS = 24
FREED_WITHIN_S = 1.0
HELD = (
    "vllm_num_requests_running",
    "vllm_num_requests_waiting",
    "trinity_global_blocks_held",
    "trinity_sliding_blocks_held",
)


@pytest.fixture(scope="module")
def wanted_tokens(tiny_checkpoint: Path) -> list[list[int]]:
    return transformers_tokens(tiny_checkpoint, PROMPTS, NUM_TOKENS)


async def greedy_tokens(
    client: openai.AsyncOpenAI, prompt: list[int], *, stream: bool
) -> list[int]:
    """Return the token ids of one completion."""
    extra = {"return_token_ids": True, "ignore_eos": True}
    if not stream:
        whole = await client.completions.create(
            model="tiny", prompt=prompt, max_tokens=NUM_TOKENS, temperature=0, extra_body=extra
        )
        return token_ids(whole.choices[0].to_dict())
    chunks = await client.completions.create(
        model="tiny",
        prompt=prompt,
        max_tokens=NUM_TOKENS,
        temperature=0,
        extra_body=extra,
        stream=True,
    )
    return [token async for chunk in chunks for token in token_ids(chunk.choices[0].to_dict())]


def token_ids(choice: dict[str, object]) -> list[int]:
    ids = choice["token_ids"]
    assert isinstance(ids, list)
    return ids


@pytest.mark.parametrize("stream", [True, False])
async def test_greedy_tokens_of_sixteen_prompts_at_once_are_those_of_transformers(
    inline_process: RunningServer, wanted_tokens: list[list[int]], stream: bool
) -> None:
    url = f"{inline_process.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        ours = await asyncio.gather(
            *(greedy_tokens(client, prompt, stream=stream) for prompt in PROMPTS)
        )
    assert_same_tokens(ours, wanted_tokens)


def test_every_answer_names_checkpoint_and_arithmetic(
    inline_process: RunningServer, tiny_checkpoint: Path
) -> None:
    checkpoint = Checkpoint.open(str(tiny_checkpoint))
    wanted = fingerprint_of(checkpoint, load_expert_kernels("auto"), "float32").name
    url = f"{inline_process.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        whole = client.completions.create(model="tiny", prompt="a", max_tokens=1)
        chunks = client.completions.create(model="tiny", prompt="a", max_tokens=1, stream=True)
        assert {answer.system_fingerprint for answer in (whole, *chunks)} == {wanted}


def numbers(url: str) -> dict[str, float]:
    """Return the metrics of a server by name."""
    text = httpx.get(f"{url}/metrics", timeout=10.0).text
    found = re.findall(r"^(\w+)(?:\{[^}]*\})? ([0-9.e+-]+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def test_a_prompt_sent_again_is_found_in_the_prefix_cache_and_counted(
    inline_process: RunningServer,
) -> None:
    url, body = inline_process.url, {"prompt": list(range(20, 120)), "max_tokens": 2}
    hits = []
    for _ in range(2):
        before = numbers(url)
        httpx.post(f"{url}/v1/completions", json=body, timeout=30.0).raise_for_status()
        assert eventually(lambda: holds_nothing(url), 10.0)
        after = numbers(url)
        queries, found = (
            after[f"vllm_prefix_cache_{name}_total"] - before[f"vllm_prefix_cache_{name}_total"]
            for name in ("queries", "hits")
        )
        assert queries == 100.0
        hits.append(found)
    assert hits == [0.0, 96.0]


def holds_nothing(url: str) -> bool:
    now = numbers(url)
    return all(now[name] == 0.0 for name in HELD)


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_go_away_free_sequences_and_kv_within_a_second(
    inline_process: RunningServer, stream: bool
) -> None:
    url = inline_process.url
    assert eventually(lambda: holds_nothing(url), 10.0)
    body = orjson.dumps(
        {"prompt": "hello", "max_tokens": 900, "ignore_eos": True, "stream": stream, "n": 3}
    )
    head = b"POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
    connections = []
    for _ in range(4):
        parts = urlsplit(url)
        connection = socket.create_connection((parts.hostname, parts.port), timeout=10.0)
        connection.sendall(b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body))
        connections.append(connection)
    # Twelve choices, of which eight run at a time.
    assert eventually(lambda: numbers(url)["vllm_num_requests_waiting"] > 0, 10.0)
    assert numbers(url)["trinity_global_blocks_held"] > 0
    for connection in connections:
        connection.close()
    assert eventually(lambda: holds_nothing(url), FREED_WITHIN_S)


async def test_a_flood_is_refused_at_once_beyond_the_queue_and_the_rest_is_served(
    tiny_checkpoint: Path,
) -> None:
    config = parse_serve_args(
        {
            "mode": "inline",
            "model": {"path": str(tiny_checkpoint)},
            "experts": {"num_shards": 2},
            "attention": {"kv_memory_bytes": "16MiB", "max_num_seqs": 2, "max_waiting": 4},
        }
    )
    body = {"prompt": [60, 61, 62], "max_tokens": 200, "ignore_eos": True}
    with inline_server(config) as url:
        async with httpx.AsyncClient(timeout=60.0) as client:

            async def one() -> tuple[httpx.Response, float]:
                begun_s = time.monotonic()
                answer = await client.post(f"{url}/v1/completions", json=body)
                return answer, time.monotonic() - begun_s

            answers = await asyncio.gather(*(one() for _ in range(40)))
        assert eventually(lambda: holds_nothing(url), FREED_WITHIN_S)
    served = [took_s for answer, took_s in answers if answer.status_code == 200]
    refused = [(answer, took_s) for answer, took_s in answers if answer.status_code == 429]
    assert len(served) >= 6
    assert len(refused) == len(answers) - len(served) > 0
    for answer, took_s in refused:
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "overloaded"
        # Said before any of those that were accepted is done.
        assert took_s < min(served)


def test_rows_sent_to_shards_are_counted(inline_process: RunningServer) -> None:
    before = numbers(inline_process.url)
    body = {"prompt": "hello", "max_tokens": 4, "ignore_eos": True}
    httpx.post(f"{inline_process.url}/v1/completions", json=body, timeout=10.0).raise_for_status()
    after = numbers(inline_process.url)
    for name in ("trinity_dispatch_calls", "trinity_dispatch_rows", "trinity_shard_rows"):
        assert after[f"{name}_total"] > before[f"{name}_total"]
    for name in ("trinity_dispatch_seconds", "vllm_request_decode_time_seconds"):
        assert after[f"{name}_count"] > before[f"{name}_count"]
    assert after["trinity_shards_lost_total"] == 0.0
