"""Ranks that leave while they serve: their streams go on elsewhere with the same tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.integration.ray_deployment import MODEL, Deployment
from tests.integration.ray_requests import Streams
from tests.integration.ray_server import eventually

pytestmark = pytest.mark.timeout(240)

PROMPTS = [[7 + number, 40, 5] for number in range(8)]
NUM_TOKENS = 900


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: Deployment) -> list[list[int]]:
    """What the streams are when nobody leaves."""
    ray_cluster.restore()
    return Streams(ray_cluster.endpoint, MODEL, PROMPTS, NUM_TOKENS).results()


def open_streams(deployment: Deployment) -> Streams:
    """Open streams on both ranks and return in their middle."""
    streams = Streams(deployment.endpoint, MODEL, PROMPTS, NUM_TOKENS)
    streams.await_middle(20)
    return streams


def with_ranks(base: dict[str, Any], **changes: object) -> dict[str, Any]:
    """Return the file with Serve's own settings for the ranks alone: nothing else restarts."""
    config = copy.deepcopy(base)
    config["applications"][0]["deployments"].append({"name": "AttentionRank", **changes})
    return config


def test_streams_go_on_when_their_rank_is_scaled_away(
    deployment: Deployment, undisturbed: list[list[int]]
) -> None:
    streams = open_streams(deployment)
    deployment.deploy(with_ranks(deployment.base, num_replicas=1), checked=False)
    eventually(lambda: len(deployment.ranks()) == 1)
    assert streams.num_open > 0
    assert streams.results() == undisturbed


@pytest.mark.slow
def test_streams_go_on_while_every_rank_is_replaced(
    deployment: Deployment, undisturbed: list[list[int]]
) -> None:
    before = deployment.ranks()
    streams = open_streams(deployment)
    options = {"num_cpus": 0.5, "label_selector": {"pool": "attention"}}
    deployment.deploy(with_ranks(deployment.base, ray_actor_options=options), checked=False)
    eventually(lambda: not set(before) <= set(deployment.ranks()))
    assert streams.num_open > 0
    assert streams.results() == undisturbed


@pytest.mark.slow
def test_streams_go_on_when_the_node_of_a_rank_is_drained(
    deployment: Deployment, undisturbed: list[list[int]]
) -> None:
    before = deployment.ranks()
    streams = open_streams(deployment)
    deployment.command(
        *("ray", "drain-node", "--address", deployment.address),
        *("--node-id", deployment.nodes["attention"].pop()),
        *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"),
        *("--deadline-remaining-seconds", "60"),
    )
    eventually(lambda: not set(before) <= set(deployment.ranks()))
    assert streams.num_open > 0
    assert streams.results() == undisturbed
