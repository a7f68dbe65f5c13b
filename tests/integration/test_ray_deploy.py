"""What an operator does with a cluster of three nodes: deploy, look, change, end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.ray_server import REPOSITORY, eventually
from trinity_serve.config import check_ray_config
from trinity_serve.processes import descendants

pytestmark = pytest.mark.timeout(240)
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Deployment:
    """A Ray cluster, and the Serve file that is deployed to it."""

    process: subprocess.Popen[bytes]
    dashboard: str
    endpoint: str
    config: dict[str, Any]
    path: Path

    def serve(self, *arguments: str) -> str:
        """Run Serve's command line and return what it printed."""
        done = subprocess.run(
            [str(BIN / "serve"), *arguments],
            env=environment(),
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=90,
            check=True,
        )
        return done.stdout

    def deploy(self) -> None:
        """Check the file and deploy it."""
        self.path.write_text(yaml.safe_dump(self.config))
        check_ray_config(self.path)
        self.serve("deploy", "-a", self.dashboard, str(self.path))

    def status(self) -> dict[str, Any]:
        """Return what `serve status` says of the application."""
        status = yaml.safe_load(self.serve("status", "-a", self.dashboard))
        found: dict[str, Any] = status["applications"]["trinity"]
        return found

    def is_ready(self) -> bool:
        """Whether `/ready` answers 200."""
        try:
            with urllib.request.urlopen(f"{self.endpoint}/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def complete(self) -> list[int]:
        """Return greedy tokens."""
        body = {
            "model": "trinity-demo",
            "prompt": [5, 6, 7],
            "max_tokens": 12,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        request = urllib.request.Request(
            f"{self.endpoint}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: list[int] = json.load(answer)["choices"][0]["token_ids"]
        return found

    def pids(self, title: str) -> list[int]:
        """Return the cluster's processes with this title."""
        found = []
        for each in descendants(self.process.pid):
            with suppress(OSError):
                if Path(f"/proc/{each.pid}/cmdline").read_text().startswith(title):
                    found.append(each.pid)
        return sorted(found)


def environment() -> dict[str, str]:
    return os.environ | {
        "RAY_AUTH_MODE": "disabled",
        "PYTHONPATH": os.environ.get("PYTHONPATH", str(REPOSITORY)),
    }


@pytest.fixture(scope="module")
def deployment(tiny_checkpoint: Path) -> Iterator[Deployment]:
    port, dashboard_port = free_port(), free_port()
    config = yaml.safe_load((REPOSITORY / "ray_config.yaml").read_text())
    config["http_options"]["port"] = port
    config["proxy_location"] = "HeadOnly"
    (app,) = config["applications"]
    app["deployments"][0]["user_config"]["num_shards"] = 2
    args = app["args"]
    args["model"] |= {"path": str(tiny_checkpoint), "max_model_len": 512}
    args["attention"]["kv_memory_bytes"] = "64MiB"
    args["network"] = {"bind_host": "127.0.0.1"}
    args["attention"]["resources"]["labels"] = {"pool": "attention"}
    args["experts"]["resources"]["labels"] = {"pool": "experts"}
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        output = Path(folder, "cluster.log")
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.ray_cluster", str(dashboard_port)],
            env=environment() | {"TMPDIR": folder, "RAY_TMPDIR": folder},
            cwd=REPOSITORY,
            stdout=output.open("w"),
            stderr=subprocess.STDOUT,
        )
        try:
            eventually(lambda: "READY" in output.read_text(), timeout_s=60)
            yield Deployment(
                process,
                f"http://127.0.0.1:{dashboard_port}",
                f"http://127.0.0.1:{port}",
                config,
                Path(folder, "ray_config.yaml"),
            )
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def test_a_deployed_file_serves_over_shards_on_another_node(deployment: Deployment) -> None:
    deployment.deploy()
    eventually(deployment.is_ready, timeout_s=90)
    assert len(deployment.complete()) == 12
    assert len(deployment.pids("ray::ExpertShard")) == 2


def test_the_same_file_again_changes_nothing(deployment: Deployment) -> None:
    before = deployment.pids("ray::")
    deployment.deploy()
    time.sleep(3)  # what would be restarted would be gone by now
    assert [pid for pid in before if pid not in deployment.pids("ray::")] == []
    assert deployment.status()["status"] == "RUNNING"


def test_another_shard_count_changes_just_that(deployment: Deployment) -> None:
    tokens = deployment.complete()
    replicas = deployment.pids("ray::ServeReplica")
    shards = deployment.pids("ray::ExpertShard")
    deployment.config["applications"][0]["deployments"][0]["user_config"]["num_shards"] = 3
    deployment.deploy()

    def moved() -> bool:
        now = deployment.pids("ray::ExpertShard")
        return len(now) == 3 and not set(now) & set(shards)

    eventually(moved, timeout_s=60)
    assert deployment.pids("ray::ServeReplica") == replicas
    assert deployment.complete() == tokens


def test_shutdown_ends_the_shards_too(deployment: Deployment) -> None:
    deployment.serve("shutdown", "-a", deployment.dashboard, "-y")
    eventually(lambda: deployment.pids("ray::ExpertShard") == [], timeout_s=30)
