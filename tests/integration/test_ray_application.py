"""The Ray application with fake insides: every token arrives once, whoever is killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.ray_fakes import expected
from tests.integration.ray_server import RayServer, eventually, python, running
from trinity_serve.processes import descendants, is_alive

NUM_TOKENS = 250


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path) -> Iterator[RayServer]:
    args = {
        "mode": "local",
        "model": {"path": str(tiny_checkpoint), "served_name": "fake"},
        "ingress": {"port": 0},
        "experts": {"num_shards": 2},
        "attention": {"num_replicas": 2},
    }
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        command = python("-m", "tests.integration.ray_fake_server", json.dumps(args))
        with running(command, Path(folder)) as server:
            yield server


def generate(server: RayServer, prompt_ids: list[int], num_tokens: int = NUM_TOKENS) -> list[int]:
    body = {
        "model": "fake",
        "prompt": prompt_ids,
        "max_tokens": num_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }
    ids: list[int] = []
    for chunk in server.post("/v1/completions", body):
        assert "error" not in chunk, chunk
        choices = chunk["choices"]
        assert isinstance(choices, list)
        for choice in choices:
            ids += choice.get("token_ids") or []
    return ids


def generate_many_while(server: RayServer, pid: int) -> None:
    """Run streams, kill `pid` in their middle, and hold every stream to what it should be."""
    prompts = [[1, 2, 3 + number] for number in range(8)]
    with ThreadPoolExecutor(len(prompts)) as threads:
        futures = [threads.submit(generate, server, prompt) for prompt in prompts]
        time.sleep(0.5)  # into the middle of about 1.5 s of streams
        os.kill(pid, signal.SIGKILL)
        for prompt, future in zip(prompts, futures, strict=True):
            assert future.result() == expected(prompt, NUM_TOKENS)


def test_tokens_arrive_once_and_in_order(server: RayServer) -> None:
    assert generate(server, [5, 6], 20) == expected([5, 6], 20)


def test_processes_have_speaking_names(server: RayServer) -> None:
    assert len(server.pids("ray::ExpertShard")) == 2


def test_a_killed_shard_is_replaced(server: RayServer) -> None:
    victim, other = server.pids("ray::ExpertShard")
    generate_many_while(server, victim)

    def replaced() -> bool:
        now = server.pids("ray::ExpertShard")
        return len(now) == 2 and victim not in now and other in now

    eventually(replaced)
    eventually(server.is_ready)


def test_a_killed_pool_finds_its_shards_again(server: RayServer) -> None:
    shards = server.pids("ray::ExpertShard")
    (pool,) = server.pids("ray::ServeReplica:trinity:ExpertPool")
    generate_many_while(server, pool)
    eventually(lambda: server.pids("ray::ServeReplica:trinity:ExpertPool") not in ([], [pool]))
    eventually(server.is_ready)
    assert server.pids("ray::ExpertShard") == shards


def test_streams_go_on_at_another_rank_when_theirs_is_killed(server: RayServer) -> None:
    ranks = server.pids("ray::ServeReplica:trinity:AttentionRank")
    assert len(ranks) == 2
    generate_many_while(server, ranks[0])
    eventually(lambda: len(server.pids("ray::ServeReplica:trinity:AttentionRank")) == 2)


def test_a_killed_ingress_is_back_at_the_same_port(server: RayServer) -> None:
    (ingress,) = server.pids("ray::ServeReplica:trinity:Ingress")
    os.kill(ingress, signal.SIGKILL)
    eventually(lambda: server.pids("ray::ServeReplica:trinity:Ingress") not in ([], [ingress]))
    eventually(server.is_ready)
    assert generate(server, [5, 6], 20) == expected([5, 6], 20)


def test_nothing_is_left_after_sigint(server: RayServer) -> None:
    started = descendants(server.process.pid)
    began_s = time.monotonic()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(15) == 0
    assert time.monotonic() - began_s < 10
    assert not any(is_alive(each) for each in started)
    assert [path.name for path in server.folder.iterdir()] == ["server.log"]
