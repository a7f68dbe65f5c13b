"""The application as Serve gets it: what each deployment may have open at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve._private.build_app import build_app
from ray.serve.deployment import Deployment
from ray.serve.schema import ServeDeploySchema

from trinity_serve.app import build
from trinity_serve.config import parse_serve_args

ROOT = Path(__file__).parents[3]
SERVES_DEFAULT = 5


def serve_files() -> dict[str, dict[str, Any]]:
    """Return every Serve file of the repository."""
    manifest = yaml.safe_load((ROOT / "cluster/deploy/kuberay.yaml").read_text())
    return {
        "ray_config.yaml": yaml.safe_load((ROOT / "ray_config.yaml").read_text()),
        "kuberay.yaml": yaml.safe_load(manifest["spec"]["serveConfigV2"]),
    }


@pytest.fixture(params=["ray_config.yaml", "kuberay.yaml"])
def serve_file(request: pytest.FixtureRequest) -> dict[str, Any]:
    return serve_files()[request.param]


def deployments_of(args: Mapping[str, object]) -> dict[str, Deployment]:
    """Return what `build` makes of them, by name, as Serve takes it apart."""
    built = build_app(build(args), name="trinity")
    return {each.name: each for each in built.deployments}


def test_no_deployment_has_serves_default_of_open_requests(serve_file: dict[str, Any]) -> None:
    args = serve_file["applications"][0]["args"]
    config, deployments = parse_serve_args(args), deployments_of(args)
    assert set(deployments) == {"Ingress", "AttentionRank", "ExpertPool"}
    for deployment in deployments.values():
        assert deployment.max_ongoing_requests > 50 * SERVES_DEFAULT
    # The bounds that answer clients are ours, below Serve's.
    attention = config.attention
    rank_bound = deployments["AttentionRank"].max_ongoing_requests
    assert rank_bound > attention.max_num_seqs + attention.max_waiting
    assert deployments["Ingress"].max_ongoing_requests > config.ingress.max_open_requests


def test_the_bounds_follow_the_configuration() -> None:
    small, large = (
        deployments_of(
            {
                "model": {"path": "x"},
                "attention": {"max_num_seqs": 1, "max_waiting": size},
                "ingress": {"max_open_requests": size},
            }
        )
        for size in (10, 10_000)
    )
    for name in ("Ingress", "AttentionRank"):
        assert large[name].max_ongoing_requests > 10_000 > small[name].max_ongoing_requests > 10


def test_no_serve_file_says_otherwise(serve_file: dict[str, Any]) -> None:
    schema = ServeDeploySchema.model_validate(serve_file)
    for deployment in schema.applications[0].deployments:
        # What the file leaves unset, Serve takes from the application.
        assert deployment.model_dump(exclude_unset=True).keys() <= {"name", "user_config"}
