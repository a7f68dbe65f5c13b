"""`trinity serve FILE`: the same file on a Ray of its own, and on a cluster that runs already."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.ray_deployment import MODEL, Deployment, base_config, free_port
from tests.integration.ray_requests import generate, is_ready
from tests.integration.ray_server import eventually, python, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

COMMAND = ("-m", "trinity_serve.cli.main", "serve")
PROMPT = [5, 6, 7]


def on_one_machine(checkpoint: Path) -> dict[str, Any]:
    """Return a Serve file with everything a cluster has but its labels."""
    config = base_config(checkpoint, free_port())
    args = config["applications"][0]["args"]
    for section in ("attention", "experts"):
        args[section]["resources"] |= {"labels": {}, "num_cpus": 50}
    return config


def test_a_file_is_served_on_a_ray_of_its_own_that_leaves_nothing(tiny_checkpoint: Path) -> None:
    config = on_one_machine(tiny_checkpoint)
    port = config["http_options"]["port"]
    with tempfile.TemporaryDirectory(prefix="t-") as name:
        folder = Path(name)
        path = folder / "ray_config.yaml"
        path.write_text(yaml.safe_dump(config))
        with running(python(*COMMAND, str(path)), folder) as server:
            assert server.endpoint == f"http://127.0.0.1:{port}"
            assert len(generate(server.endpoint, MODEL, PROMPT, 12)) == 12
            assert len(server.pids("ray::ExpertShard")) == 2
            assert len(server.pids("ray::ServeReplica:trinity:AttentionRank")) == 2
        assert sorted(path.name for path in folder.iterdir()) == ["ray_config.yaml", "server.log"]


def test_a_file_is_served_on_a_running_cluster_and_deleted_there_again(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    tokens = deployment.complete()
    config = copy.deepcopy(deployment.base)
    config["applications"][0]["deployments"][0]["user_config"]["num_shards"] = 3
    with tempfile.TemporaryDirectory(prefix="t-") as name:
        path = Path(name, "ray_config.yaml")
        path.write_text(yaml.safe_dump(config))
        command = python(*COMMAND, "--config", str(path), "--address", deployment.address)
        with running(command, Path(name)) as server:
            assert server.endpoint == deployment.endpoint
            eventually(lambda: len(deployment.shards()) == 3, timeout_s=60)
            assert generate(server.endpoint, MODEL, PROMPT, 12) == tokens
    deployment.config = {}
    eventually(lambda: deployment.shards() == [] and deployment.ranks() == [], timeout_s=30)
    assert not is_ready(deployment.endpoint)
