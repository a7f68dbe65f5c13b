"""KubeRay manifests, Serve files and images agree with the configuration and the pinned versions.

The allowed keys below were taken from the RayService CRD (ray.io/v1) of KubeRay, August 2026; the
whole CPU manifest was validated against that schema when it was written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from trinity_serve.config import find_problems, load_serve_config
from trinity_serve.model.kv_sizing import KvDemand, size_kv
from trinity_serve.planning import ModelSizes
from trinity_serve.synthetic import PRESETS

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


@pytest.fixture(params=["kuberay.yaml", "kuberay-gpu.yaml"])
def spec(request: pytest.FixtureRequest) -> dict[str, Any]:
    manifest = yaml.safe_load((ROOT / "cluster/deploy" / request.param).read_text())
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


def test_pods_have_the_gpus_that_ranks_and_shards_ask_for(
    spec: dict[str, Any], serve_file: Path
) -> None:
    config = load_serve_config(serve_file)
    gpus = {
        group["groupName"]: group["replicas"] * num_gpus(group)
        for group in spec["rayClusterConfig"]["workerGroupSpecs"]
    }
    asked = {
        "attention": config.attention.num_replicas * config.attention.resources.num_gpus,
        "experts": config.experts.num_shards * config.experts.resources.num_gpus,
    }
    assert gpus == asked


def num_gpus(group: dict[str, Any]) -> int:
    (container,) = group["template"]["spec"]["containers"]
    resources = container["resources"]
    key = "nvidia.com/gpu"
    # A device is either asked for and limited alike, or Kubernetes refuses the pod.
    assert resources["requests"].get(key) == resources["limits"].get(key)
    return int(resources["limits"].get(key, 0))


def test_pods_have_the_processors_that_their_processes_reserve(
    spec: dict[str, Any], serve_file: Path
) -> None:
    config = load_serve_config(serve_file)
    parts = (
        (config.attention.num_replicas, config.attention.resources),
        (config.experts.num_shards, config.experts.resources),
        (config.ingress.num_replicas, config.ingress.resources),
    )
    for group in spec["rayClusterConfig"]["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        there = group["replicas"] * int(container["resources"]["limits"]["cpu"])
        here = [count * each.num_cpus for count, each in parts if each.labels == group["labels"]]
        assert sum(here) <= there


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_the_image_holds_every_package_and_installs_the_pins(name: str) -> None:
    dockerfile = (ROOT / name).read_text()
    for package in ("cluster", "experts", "router", "trinity_serve"):
        assert f"COPY {package} {package}" in dockerfile
    assert "--requirement requirements.lock" in dockerfile
    assert re.search(r"^USER (?!root)", dockerfile, re.M)


@dataclass(frozen=True)
class GpuFile:
    """A Serve file for GPUs of 141 GB, and what it is written for."""

    num_gpus: int
    shares_gpus: bool = False
    shards_on_gpus: bool = True


GPU_FILES = {
    "gpu-node.yaml": GpuFile(8),
    "gpu-two-nodes.yaml": GpuFile(16),
    "gpu-colocated.yaml": GpuFile(16, shares_gpus=True),
    "gpu-mixed.yaml": GpuFile(8, shards_on_gpus=False),
}
MEMORY_BYTES, RESERVE_BYTES = 141e9, 12e9


def test_every_serve_file_for_gpus_is_looked_at() -> None:
    found = {path.name for path in (ROOT / "cluster/deploy").glob("gpu-*.yaml")}
    assert found == set(GPU_FILES)


@pytest.mark.parametrize("name", GPU_FILES)
def test_a_serve_file_for_gpus_passes_the_check_and_takes_the_gpus_it_names(name: str) -> None:
    path, written_for = ROOT / "cluster/deploy" / name, GPU_FILES[name]
    assert find_problems(path) == []
    config = load_serve_config(path)
    ranks = config.attention.num_replicas * config.attention.resources.num_gpus
    shards = config.experts.num_shards * config.experts.resources.num_gpus
    assert ranks + shards == written_for.num_gpus
    assert (shards > 0) == written_for.shards_on_gpus


@pytest.mark.parametrize("name", GPU_FILES)
def test_large_fits_the_gpus_of_a_serve_file(name: str) -> None:
    config, written_for = load_serve_config(ROOT / "cluster/deploy" / name), GPU_FILES[name]
    large, experts = PRESETS["large"], config.experts
    sizes = ModelSizes(large)
    on_rank = sizes.rank_bytes + config.attention.kv_memory_bytes
    on_shard = sizes.slice_bytes(experts.num_shards, experts.num_replicas)
    room = MEMORY_BYTES - RESERVE_BYTES
    if written_for.shares_gpus:
        assert on_rank + on_shard <= room
    else:
        assert on_rank <= room
        assert on_shard <= room or not written_for.shards_on_gpus
    demand = KvDemand(1, config.model.max_model_len or 0, config.attention.max_num_batched_tokens)
    size_kv(large, demand, config.attention.kv_memory_bytes, 2)
