"""What an operator does with a cluster: deploy, look, change, end."""

from __future__ import annotations

import copy

import pytest

from tests.integration.ray_deployment import Deployment
from tests.integration.ray_server import eventually

pytestmark = pytest.mark.timeout(240)


def test_a_deployed_file_serves_over_shards_on_another_node(deployment: Deployment) -> None:
    assert len(deployment.complete()) == 12
    assert len(deployment.shards()) == 2


def test_the_same_file_again_changes_nothing(deployment: Deployment) -> None:
    before, deployed_s = deployment.pids("ray::"), deployment.status()["last_deployed_time_s"]
    deployment.deploy(deployment.config)

    def taken() -> bool:
        status = deployment.status()
        return status["last_deployed_time_s"] > deployed_s and status["status"] == "RUNNING"

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

    def moved() -> bool:
        now = deployment.shards()
        return len(now) == 3 and not set(now) & set(shards)

    eventually(moved, timeout_s=60)
    assert deployment.pids("ray::ServeReplica") == replicas
    assert deployment.complete() == tokens


def test_shutdown_ends_the_shards_too(deployment: Deployment) -> None:
    deployment.command("serve", "shutdown", "-a", deployment.dashboard, "-y")
    deployment.config = {}
    eventually(lambda: deployment.shards() == [], timeout_s=30)
