"""A Serve file on a Ray cluster of several nodes, worked on by Serve's own command line."""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.integration.ray_requests import generate, is_ready
from tests.integration.ray_server import REPOSITORY, eventually
from trinity_serve.config import check_ray_config
from trinity_serve.processes import descendants

BIN = Path(sys.executable).parent
MODEL = "trinity-demo"


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment() -> dict[str, str]:
    """Return what Ray's processes and commands are started with."""
    return os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(REPOSITORY)}


@dataclass
class Deployment:
    """A Ray cluster, and the Serve file that is deployed to it."""

    process: subprocess.Popen[bytes]
    address: str
    """Of Ray's control service."""
    nodes: dict[str, list[str]]
    """Ids of the nodes, by the pool they are labelled for."""
    dashboard: str
    endpoint: str
    base: dict[str, Any]
    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    """What is deployed now; empty when nothing is."""

    def command(self, program: str, *arguments: str) -> str:
        """Run `ray` or `serve` and return what it printed."""
        return self._run(str(BIN / program), *arguments)

    def run_python(self, module: str, *arguments: str) -> str:
        """Run a module and return what it printed."""
        return self._run(sys.executable, "-m", module, *arguments)

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            env=environment(),
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def deploy(self, config: dict[str, Any], *, checked: bool = True) -> None:
        """Check the file and deploy it; `checked=False` for what only Serve's own schema allows."""
        self.path.write_text(yaml.safe_dump(config))
        if checked:
            check_ray_config(self.path)
        self.command("serve", "deploy", "-a", self.dashboard, str(self.path))
        self.config = copy.deepcopy(config)

    def shut_down(self) -> None:
        """End Serve and all that is deployed."""
        self.command("serve", "shutdown", "-a", self.dashboard, "-y")
        self.config = {}

    def restore(self) -> None:
        """Have the base file deployed and ready."""
        if self.config != self.base:
            self.deploy(self.base)
        eventually(self.is_settled, timeout_s=90)

    def is_settled(self) -> bool:
        """Whether `/ready` answers 200 and Serve has all it was told to have."""
        status = self.status()
        if status.get("status") != "RUNNING" or not is_ready(self.endpoint):
            return False
        parts = status["deployments"].values()
        return all(
            part["status"] == "HEALTHY" and len(part["replicas"]) == part["target_num_replicas"]
            for part in parts
        )

    def status(self) -> dict[str, Any]:
        """Return what Serve says of the application; the source of `serve status`."""
        url = f"{self.dashboard}/api/serve/applications/"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)["applications"].get("trinity", {})
        return found

    def complete(self) -> list[int]:
        """Return greedy tokens."""
        return generate(self.endpoint, MODEL, [5, 6, 7], 12)

    def pids(self, title: str) -> list[int]:
        """Return the cluster's processes with this title."""
        found = []
        for each in descendants(self.process.pid):
            with suppress(OSError):
                if Path(f"/proc/{each.pid}/cmdline").read_text().startswith(title):
                    found.append(each.pid)
        return sorted(found)

    def shards(self) -> list[int]:
        """Return the shards' process ids."""
        return self.pids("ray::ExpertShard")

    def ranks(self) -> list[int]:
        """Return the ranks' process ids."""
        return self.pids("ray::ServeReplica:trinity:AttentionRank")


def base_config(checkpoint: Path, port: int) -> dict[str, Any]:
    """Return the shipped Serve file, with two ranks and two shards of `checkpoint`."""
    config: dict[str, Any] = yaml.safe_load((REPOSITORY / "ray_config.yaml").read_text())
    config["http_options"]["port"] = port
    config["proxy_location"] = "HeadOnly"
    (app,) = config["applications"]
    app["deployments"][0]["user_config"]["num_shards"] = 2
    args = app["args"]
    args["model"] |= {"path": str(checkpoint), "max_model_len": 1024}
    args["attention"] |= {"kv_memory_bytes": "64MiB", "num_replicas": 2}
    args["network"] = {"bind_host": "127.0.0.1"}
    args["attention"]["resources"]["labels"] = {"pool": "attention"}
    args["experts"]["resources"]["labels"] = {"pool": "experts"}
    # As between hosts; mode local has the Unix sockets.
    args["experts"]["transport"] = "grpc"
    return config


@contextmanager
def deployed(checkpoint: Path) -> Iterator[Deployment]:
    """Run a cluster of one node for shards and two for ranks until the block ends."""
    port, dashboard_port = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        output = Path(folder, "cluster.log")
        with output.open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.ray_cluster", str(dashboard_port)],
                env=environment() | {"TMPDIR": folder, "RAY_TMPDIR": folder},
                cwd=REPOSITORY,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            eventually(lambda: "READY" in output.read_text(), timeout_s=60)
            said = [line.split() for line in output.read_text().splitlines()]
            nodes: dict[str, list[str]] = {}
            for _, pool, node_id in (words for words in said if words[:1] == ["NODE"]):
                nodes.setdefault(pool, []).append(node_id)
            (address,) = (words[1] for words in said if words[:1] == ["READY"])
            yield Deployment(
                process,
                address,
                nodes,
                f"http://127.0.0.1:{dashboard_port}",
                f"http://127.0.0.1:{port}",
                base_config(checkpoint, port),
                Path(folder, "ray_config.yaml"),
            )
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)
