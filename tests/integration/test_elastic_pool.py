"""Shards of a real model are killed, stopped, added and ended under streams: no bit changes."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.ray_server import RayServer, eventually, python, running
from trinity_serve.cli.admin import AdminClient

pytestmark = pytest.mark.timeout(240)

PROMPTS = [[7 + 3 * number, 11, 250 - number, 42 + number] for number in range(6)]
NUM_TOKENS = 150
LOAD_REPORT_S = 1.0
Outcome = list[tuple[list[int], list[float]]]


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path) -> Iterator[RayServer]:
    model = {"path": str(tiny_checkpoint), "served_name": "tiny", "dtype": "float32"}
    config = {
        "mode": "local",
        "model": model,
        "attention": {"kv_memory_bytes": "64MiB"},
        "experts": {"num_shards": 3, "num_replicas": 2, "load_report_s": LOAD_REPORT_S},
        "ingress": {"port": 0},
    }
    command = python("-m", "tests.integration.ray_real_server", json.dumps(config))
    with (
        tempfile.TemporaryDirectory(prefix="t-") as folder,
        running(command, Path(folder)) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def admin(server: RayServer) -> AdminClient:
    return AdminClient(server.endpoint)


def stream(server: RayServer, prompt: list[int]) -> tuple[list[int], list[float]]:
    """Return the token ids and logprobs of one stream."""
    body = {
        "model": "tiny",
        "prompt": prompt,
        "max_tokens": NUM_TOKENS,
        "temperature": 0.9,
        "seed": 1234,
        "logprobs": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }
    ids: list[int] = []
    logprobs: list[float] = []
    for chunk in server.post("/v1/completions", body):
        assert "error" not in chunk, chunk
        choices = chunk["choices"]
        assert isinstance(choices, list)
        for choice in choices:
            ids += choice.get("token_ids") or []
            logprobs += (choice.get("logprobs") or {}).get("token_logprobs") or []
    return ids, logprobs


@pytest.fixture(scope="module")
def undisturbed(server: RayServer) -> Outcome:
    """What the prompts give when nothing happens."""
    return [stream(server, prompt) for prompt in PROMPTS]


def hold_while(server: RayServer, undisturbed: Outcome, disturb: Callable[[], None]) -> None:
    """Run streams again and again until `disturb` is done; hold each to the undisturbed one."""
    with ThreadPoolExecutor(len(PROMPTS) + 1) as threads:
        disturbing = threads.submit(disturb)
        while True:
            last = disturbing.done()
            assert list(threads.map(lambda p: stream(server, p), PROMPTS)) == undisturbed
            if last:
                break
        disturbing.result()


def settled(admin: AdminClient, num_shards: int) -> Callable[[], bool]:
    def condition() -> bool:
        status = admin.status()
        shards = status["shards"]
        assert isinstance(shards, list)
        return bool(status["settled"]) and len(shards) == num_shards

    return condition


def test_the_cluster_is_shown(server: RayServer, admin: AdminClient) -> None:
    status = admin.status()
    assert status["covered"]
    assert status["target"] == {"num_shards": 3, "num_replicas": 2, "replica_bytes": 0}
    assert status["num_ranks"] == 1


def test_a_killed_shard_with_replicas_is_replaced_and_no_bit_changes(
    server: RayServer, admin: AdminClient, undisturbed: Outcome
) -> None:
    victim = server.pids("ray::ExpertShard")[0]

    def kill() -> None:
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: victim not in server.pids("ray::ExpertShard"))
        eventually(settled(admin, 3))

    hold_while(server, undisturbed, kill)


def test_a_stopped_shard_is_found_out_and_replaced(
    server: RayServer, admin: AdminClient, undisturbed: Outcome
) -> None:
    victim = server.pids("ray::ExpertShard")[0]

    def stop() -> None:
        os.kill(victim, signal.SIGSTOP)
        eventually(lambda: victim not in server.pids("ray::ExpertShard"), timeout_s=15)
        eventually(settled(admin, 3))

    hold_while(server, undisturbed, stop)


def test_shards_come_and_go_under_streams(
    server: RayServer, admin: AdminClient, undisturbed: Outcome
) -> None:
    def scale() -> None:
        for num_shards in (4, 2):
            admin.scale({"shards": num_shards})
            eventually(settled(admin, num_shards), timeout_s=60)
            status = admin.status()
            assert isinstance(status["operation"], dict)
            assert (status["operation"]["phase"], status["operation"]["error"]) == ("done", "")

    hold_while(server, undisturbed, scale)
    assert len(server.pids("ray::ExpertShard")) == 2


def test_a_skewed_load_moves_experts_and_buys_the_busiest_a_further_copy(
    server: RayServer, admin: AdminClient, undisturbed: Outcome
) -> None:
    def number(key: str) -> int:
        return int(str(admin.status()[key]))

    def balance() -> None:
        admin.scale({"shards": 3, "replicas": 1})
        eventually(settled(admin, 3), timeout_s=60)
        before = number("num_moved_for_load")
        eventually(lambda: number("num_moved_for_load") > before, timeout_s=60)
        admin.scale({"replica_bytes": 2**20})
        eventually(lambda: number("num_spares") > 0, timeout_s=60)
        eventually(settled(admin, 3), timeout_s=60)

    hold_while(server, undisturbed, balance)


def test_ranks_come_and_go(server: RayServer, admin: AdminClient) -> None:
    for num_ranks in (2, 1):
        admin.scale({"ranks": num_ranks})
        title = "ray::ServeReplica:trinity:AttentionRank"
        eventually(lambda: len(server.pids(title)) == num_ranks, timeout_s=40)  # noqa: B023
        eventually(lambda: admin.status()["num_ranks"] == num_ranks)  # noqa: B023


def test_more_copies_than_shards_are_refused(admin: AdminClient) -> None:
    with pytest.raises(Exception, match="above num_shards 3"):
        admin.scale({"replicas": 4})
