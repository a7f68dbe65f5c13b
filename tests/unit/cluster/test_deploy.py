"""The KubeRay manifest and the image agree with the configuration and the pinned versions.

The allowed keys below were taken from the RayService CRD (ray.io/v1) of KubeRay, August 2026; the
whole manifest was validated against that schema when it was written.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from trinity_serve.config import find_problems, load_serve_config

ROOT = Path(__file__).parents[3]
SPEC_KEYS = {
    "serveConfigV2",
    "rayClusterConfig",
    "upgradeStrategy",
    "serviceUnhealthySecondThreshold",
    "deploymentUnhealthySecondThreshold",
}
CLUSTER_KEYS = {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
GROUP_KEYS = {
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "labels",
    "rayStartParams",
    "template",
    "serviceType",
}


@pytest.fixture
def spec() -> dict[str, Any]:
    manifest = yaml.safe_load((ROOT / "cluster/deploy/kuberay.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayService")
    found: dict[str, Any] = manifest["spec"]
    return found


@pytest.fixture
def serve_file(spec: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text(spec["serveConfigV2"])
    return path


def test_the_serve_part_passes_the_check(serve_file: Path) -> None:
    assert find_problems(serve_file) == []


def test_the_manifest_has_only_keys_that_the_operator_knows(spec: dict[str, Any]) -> None:
    cluster = spec["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert set(spec) <= SPEC_KEYS
    assert set(cluster) <= CLUSTER_KEYS
    for group in groups:
        assert set(group) <= GROUP_KEYS


def test_the_ray_version_is_the_pinned_one(spec: dict[str, Any]) -> None:
    pinned = re.search(r"ray\[serve\]==([\d.]+)", (ROOT / "pyproject.toml").read_text())
    assert pinned is not None
    assert spec["rayClusterConfig"]["rayVersion"] == pinned[1]


def test_every_label_that_is_asked_for_is_on_some_group(
    spec: dict[str, Any], serve_file: Path
) -> None:
    config = load_serve_config(serve_file)
    groups = [group["labels"] for group in spec["rayClusterConfig"]["workerGroupSpecs"]]
    for part in (config.attention, config.experts, config.ingress):
        assert part.resources.labels in groups


def test_every_pod_mounts_the_checkpoint_and_asks_for_the_token(
    spec: dict[str, Any], serve_file: Path
) -> None:
    path = Path(load_serve_config(serve_file).model.path)
    cluster = spec["rayClusterConfig"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        (container,) = group["template"]["spec"]["containers"]
        mounts = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
        assert any(mount in path.parents for mount in mounts)
        names = {variable["name"] for variable in container["env"]}
        assert {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} <= names


def test_the_image_holds_every_package_and_installs_the_pins() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    for package in ("cluster", "experts", "router", "trinity_serve"):
        assert f"COPY {package} {package}" in dockerfile
    assert "--requirement requirements.lock" in dockerfile
    assert re.search(r"^USER (?!root)", dockerfile, re.M)
