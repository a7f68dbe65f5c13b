"""Three Ray nodes with networks of their own: a rank on one, shards on two, gRPC between them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.ray_deployment import BIN, base_config, environment
from tests.integration.ray_requests import post
from tests.integration.ray_server import REPOSITORY, eventually, python, running
from tests.support.namespaces import Machine, machines, why_not
from trinity_serve.processes import Process, descendants, end_processes, is_alive

WHY_NOT = why_not()
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]

PROMPTS = [[7 + 3 * number, 11, 250 - number] for number in range(4)]
ASK = """
import json, sys, urllib.request
for body in json.load(sys.stdin):
    request = urllib.request.Request(sys.argv[1], json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    print(urllib.request.urlopen(request, timeout=60).read().decode())
"""


def bodies() -> list[dict[str, object]]:
    """Return seeded requests, sampled, with logprobs."""
    common = {"model": "trinity-demo", "max_tokens": 24, "temperature": 0.9, "seed": 5}
    wanted = {"logprobs": 3, "return_token_ids": True, "ignore_eos": True}
    return [{**common, **wanted, "prompt": prompt} for prompt in PROMPTS]


@dataclass
class Nodes:
    """Machines that run one Ray, whose head is the first of them."""

    machines: list[Machine]

    def run(self, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command on the head's machine."""
        return subprocess.run(
            self.machines[0].command(*words),
            input=text,
            env=environment(),
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    @property
    def endpoint(self) -> str:
        """Where the head's proxy answers, on the machines' own network."""
        return f"http://{self.machines[0].host}:8000"

    def is_ready(self) -> bool:
        probe = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)"
        return self.run(sys.executable, "-c", probe, f"{self.endpoint}/ready").returncode == 0

    def ask(self) -> list[object]:
        """Return the choices of every request."""
        url = f"{self.endpoint}/v1/completions"
        done = self.run(sys.executable, "-c", ASK, url, text=json.dumps(bodies()))
        assert done.returncode == 0, done.stderr
        return [json.loads(line)["choices"] for line in done.stdout.splitlines()]


def start_node(machine: Machine, head: Machine, pool: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start Ray on a machine; it ends on SIGTERM."""
    address = f"{head.host}:6379"
    dashboard = ("--include-dashboard", "true", "--dashboard-host", head.host)
    role = ("--head", "--port", "6379", *dashboard) if machine is head else ("--address", address)
    with (folder / f"{machine.name}.log").open("w") as log:
        return subprocess.Popen(
            machine.command(
                *(str(BIN / "ray"), "start", "--block", *role),
                *("--node-ip-address", machine.host, "--labels", f"pool={pool}"),
                *("--num-cpus", "4", "--object-store-memory", "100000000"),
                *("--temp-dir", str(folder / machine.host.rpartition(".")[2])),
            ),
            env=environment() | {"TMPDIR": str(folder)},
            cwd=REPOSITORY,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def configured(checkpoint: Path, head: Machine) -> dict[str, Any]:
    """Return a Serve file whose processes talk over the machines' addresses."""
    config = base_config(checkpoint, 8000)
    config["http_options"]["host"] = head.host
    args = config["applications"][0]["args"]
    args["attention"]["num_replicas"] = 1
    args["network"] = {}
    args["security"] = {"allow_unauthenticated_network_access": True}
    return config


def end_all(processes: list[subprocess.Popen[bytes]]) -> None:
    """End Ray on every machine and be sure of it."""
    below: list[Process] = [each for ray in processes for each in descendants(ray.pid)]
    for process in processes:
        process.send_signal(signal.SIGTERM)
    end_processes(below, 5.0)
    for process in processes:
        process.kill()
        process.wait(5)
    eventually(lambda: not any(is_alive(each) for each in below), timeout_s=5)


@pytest.fixture(scope="module")
def nodes(tiny_checkpoint: Path) -> Iterator[Nodes]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="t-")))
        found = stack.enter_context(machines(3))
        head = found[0]
        started: list[subprocess.Popen[bytes]] = []
        stack.callback(end_all, started)
        started.append(start_node(head, head, "attention", folder))
        log = folder / f"{head.name}.log"
        eventually(lambda: "Ray runtime started" in log.read_text(), timeout_s=60)
        started += [start_node(machine, head, "experts", folder) for machine in found[1:]]
        path = folder / "ray_config.yaml"
        path.write_text(yaml.safe_dump(configured(tiny_checkpoint, head)))
        nodes = Nodes(found)
        deployed = nodes.run(
            str(BIN / "serve"), "deploy", "-a", f"http://{head.host}:8265", str(path)
        )
        assert deployed.returncode == 0, deployed.stdout + deployed.stderr
        eventually(nodes.is_ready, timeout_s=120)
        yield nodes


def test_outputs_over_three_networks_are_those_of_one_process(
    nodes: Nodes, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    before = [machine.received_bytes() for machine in nodes.machines[1:]]
    answers = nodes.ask()
    # Every layer of every token crossed the bridge to both machines with shards.
    for machine, bytes_before in zip(nodes.machines[1:], before, strict=True):
        assert machine.received_bytes() - bytes_before > 100_000
    options = ["--model", str(tiny_checkpoint), "--mode", "inline", "--port", "0"]
    names = ["--served-model-name", "trinity-demo", "--kv-memory", "64MiB"]
    command = python("-m", "trinity_serve.cli.main", "serve", *options, *names)
    with running(command, tmp_path) as inline:
        expected = [
            next(post(inline.endpoint, "/v1/completions", body))["choices"] for body in bodies()
        ]
    assert answers == expected
