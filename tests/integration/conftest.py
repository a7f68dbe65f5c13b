"""Ray takes long to start: what the modules here can share is started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.ray_deployment import Deployment, deployed


@pytest.fixture(scope="session")
def ray_cluster(tiny_checkpoint: Path) -> Iterator[Deployment]:
    """A Ray cluster; nothing has to be deployed on it."""
    with deployed(tiny_checkpoint) as deployment:
        yield deployment


@pytest.fixture
def deployment(ray_cluster: Deployment) -> Deployment:
    """The cluster with its base file deployed and ready."""
    ray_cluster.restore()
    return ray_cluster
