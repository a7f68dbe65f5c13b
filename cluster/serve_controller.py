"""What a pool asks of Serve's controller: how many ranks there are to be, and whether to end."""

from __future__ import annotations

import logging
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve._private.common import DeploymentID

logger = logging.getLogger("ray.serve")
"""Serve's own: it writes into the file of the replica, with the request's id."""

# Ray's references have no static type that mypy could follow.
Ref = Any


def scale_ranks(app: str, num_ranks: int) -> Ref:
    """Have Serve run so many attention ranks; the reference raises when it is not allowed to."""
    # What Serve's own REST call for this runs; the dashboard it is sent to may be off.
    client = serve.context._get_global_client()
    assert client is not None
    deployment = DeploymentID("AttentionRank", app)
    return client._controller.update_deployment_replicas.remote(deployment, num_ranks)


def is_deleted(app: str) -> bool:
    """Ask Serve's controller whether the application is gone or going."""
    try:
        status = serve.status().applications.get(app)
    except (RayError, RuntimeError) as error:
        logger.warning("cannot ask the controller about %s: %s", app, error)
        return False
    return status is None or status.status == "DELETING"
