"""What an operator does with a cluster: deploy, look, change, end."""

from __future__ import annotations

import copy
import re
import socket

import pytest

from tests.integration.ray_deployment import Deployment
from tests.integration.ray_server import eventually

pytestmark = pytest.mark.timeout(240)


def test_a_deployed_file_serves_over_shards_on_another_node(deployment: Deployment) -> None:
    assert len(deployment.complete()) == 12
    assert len(deployment.shards()) == 2
    assert list(deployment.path.parent.rglob("trinity-shard-*/socket")) == []  # gRPC was asked for


def test_the_same_file_again_changes_nothing(deployment: Deployment) -> None:
    before, deployed_s = deployment.pids("ray::"), deployment.status()["last_deployed_time_s"]
    deployment.deploy(deployment.config)

    def taken() -> bool:
        status = deployment.status()
        return bool(status["last_deployed_time_s"] > deployed_s and status["status"] == "RUNNING")

    eventually(taken)
    assert [pid for pid in before if pid not in deployment.pids("ray::")] == []
    assert deployment.status()["deployments"]["AttentionRank"]["status"] == "HEALTHY"


def test_another_shard_count_changes_just_that(deployment: Deployment) -> None:
    tokens = deployment.complete()
    replicas = deployment.pids("ray::ServeReplica")
    shards = deployment.shards()
    config = copy.deepcopy(deployment.base)
    config["applications"][0]["deployments"][0]["user_config"]["num_shards"] = 3
    deployment.deploy(config)

    eventually(lambda: len(deployment.shards()) == 3, timeout_s=60)
    assert set(shards) < set(deployment.shards())
    assert deployment.pids("ray::ServeReplica") == replicas
    assert deployment.complete() == tokens


def test_shutdown_ends_the_shards_too(deployment: Deployment) -> None:
    deployment.shut_down()
    eventually(lambda: deployment.shards() == [], timeout_s=30)


def message_of(deployment: Deployment, name: str) -> str:
    """Return what `serve status` says of one deployment."""
    return str(deployment.status().get("deployments", {}).get(name, {}).get("message", ""))


def test_shards_that_nobody_asks_for_end_themselves(ray_cluster: Deployment) -> None:
    before = ray_cluster.shards()
    ray_cluster.run_python("tests.integration.ray_orphans", ray_cluster.address, "2.0")
    eventually(lambda: len(ray_cluster.shards()) == len(before) + 2, timeout_s=20)
    eventually(lambda: ray_cluster.shards() == before, timeout_s=20)


@pytest.mark.slow
def test_status_says_how_far_slow_shards_are(ray_cluster: Deployment) -> None:
    # Shards of the model that was served before are of no use, and are ended.
    config = copy.deepcopy(ray_cluster.base)
    config["applications"][0]["import_path"] = "tests.integration.ray_fakes:build_slow"
    ray_cluster.deploy(config, checked=False)
    progress = re.compile(r"STARTING: shard \d of 2, \d+ % of [\d.]+ GB")
    eventually(lambda: bool(progress.search(message_of(ray_cluster, "ExpertPool"))), timeout_s=60)
    # The failed start cost nothing: the shards that were found loaded on.
    eventually(ray_cluster.is_settled, timeout_s=60)


@pytest.mark.slow
def test_a_path_that_a_node_lacks_is_named_with_the_node(ray_cluster: Deployment) -> None:
    config = copy.deepcopy(ray_cluster.base)
    config["applications"][0]["args"]["model"]["path"] = "/nowhere/model"
    ray_cluster.deploy(config)
    problem = f"/nowhere/model does not exist on node {socket.gethostname()}"
    eventually(lambda: problem in message_of(ray_cluster, "AttentionRank"), timeout_s=60)
    assert problem in message_of(ray_cluster, "Ingress")
