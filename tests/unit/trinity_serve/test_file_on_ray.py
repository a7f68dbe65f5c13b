"""A Serve file made for a cluster, fitted to a Ray of its own on one machine."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import ConfigError
from trinity_serve.config import check_ray_config
from trinity_serve.file_on_ray import fitted_to_one_machine, serve_file

SHIPPED = Path(__file__).parents[3] / "ray_config.yaml"


@pytest.fixture
def raw() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(SHIPPED.read_text())
    return loaded


def args_of(raw: dict[str, Any]) -> dict[str, Any]:
    args: dict[str, Any] = raw["applications"][0]["args"]
    return args


def test_nothing_is_reserved_and_all_else_stays(raw: dict[str, Any], tmp_path: Path) -> None:
    fitted = fitted_to_one_machine(raw, "file")
    expected = copy.deepcopy(raw)
    for section in ("attention", "experts", "ingress"):
        args_of(expected)[section]["resources"]["num_cpus"] = 0
    args_of(expected)["model"]["path"] = args_of(fitted)["model"]["path"]
    assert fitted == expected
    path = tmp_path / "ray_config.yaml"
    path.write_text(yaml.safe_dump(fitted))
    check_ray_config(path)


def test_a_path_that_exists_here_becomes_absolute_and_a_hub_id_stays(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    args_of(raw)["model"]["path"] = "mine"
    assert args_of(fitted_to_one_machine(raw, "file"))["model"]["path"] == str(tmp_path / "mine")
    args_of(raw)["model"]["path"] = "some/model"
    assert args_of(fitted_to_one_machine(raw, "file"))["model"]["path"] == "some/model"


@pytest.mark.parametrize("section", ["attention", "experts"])
def test_labels_that_one_machine_does_not_have_are_refused_by_key(
    raw: dict[str, Any], section: str
) -> None:
    args_of(raw)[section]["resources"]["labels"] = {"pool": "x"}
    with pytest.raises(ConfigError, match=rf"args\.{section}\.resources\.labels.*--address"):
        fitted_to_one_machine(raw, "file")


def test_a_file_without_an_http_proxy_is_refused_before_ray_starts(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    raw["proxy_location"] = "Disabled"
    path = tmp_path / "ray_config.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match="proxy_location"):
        serve_file(path, address=None, on_ready=lambda endpoint: None)
