"""A lost shard without a copy comes back in the process that waited for it, and a new one waits."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

from tests.integration.ray_server import eventually, python, running
from trinity_serve.cli.admin import AdminClient

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]


def test_the_spare_takes_over_a_lost_slice_and_another_spare_waits(tiny_checkpoint: Path) -> None:
    config = {
        "mode": "local",
        "model": {"path": str(tiny_checkpoint), "served_name": "tiny"},
        "attention": {"kv_memory_bytes": "64MiB"},
        "experts": {"num_shards": 2, "warm_spare": True},
        "ingress": {"port": 0},
    }
    command = python("-m", "tests.integration.ray_real_server", json.dumps(config))
    body = {"model": "tiny", "prompt": [7, 11, 42], "max_tokens": 20, "temperature": 0.0}
    with (
        tempfile.TemporaryDirectory(prefix="t-") as folder,
        running(command, Path(folder)) as server,
    ):
        admin = AdminClient(server.endpoint)
        eventually(lambda: len(server.pids("ray::SpareShard")) == 1)
        eventually(lambda: bool(admin.status()["has_spare"]))
        [spare] = server.pids("ray::SpareShard")
        victim, _ = server.pids("ray::ExpertShard")
        [before] = server.post("/v1/completions", body)
        began_s = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: victim not in server.pids("ray::ExpertShard"))
        [after] = server.post("/v1/completions", body)
        print(f"answered {time.monotonic() - began_s:.2f} s after the kill")
        assert after["choices"] == before["choices"]
        assert len(server.pids("ray::ExpertShard")) == 1
        eventually(lambda: spare in server.pids("ray::SpareShard"))
        eventually(lambda: len(server.pids("ray::SpareShard")) == 2)
        eventually(lambda: bool(admin.status()["settled"]))
