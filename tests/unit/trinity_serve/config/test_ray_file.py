"""The Serve file is refused for every key that would silently do nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cluster.errors import ConfigError
from trinity_serve.config import check_ray_config, find_problems, load_serve_config

SHIPPED = Path(__file__).parents[4] / "ray_config.yaml"


def edited(tmp_path: Path, path: tuple[str | int, ...], value: object) -> Path:
    """Write the shipped file with `value` put at `path`."""
    document = yaml.safe_load(SHIPPED.read_text())
    node = document
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    target = tmp_path / "ray_config.yaml"
    target.write_text(yaml.safe_dump(document))
    return target


def test_the_shipped_file_is_accepted() -> None:
    assert find_problems(SHIPPED) == []
    assert check_ray_config(SHIPPED).mode == "cluster"


def test_the_shard_count_of_user_config_counts() -> None:
    assert load_serve_config(SHIPPED).experts.num_shards == 4


def test_a_budget_for_copies_that_serve_would_hand_on_as_text_is_refused(tmp_path: Path) -> None:
    where = ("applications", 0, "deployments", 0, "user_config", "replica_bytes")
    (problem,) = find_problems(edited(tmp_path, where, "2GiB"))
    assert problem.key.endswith("user_config.replica_bytes")


ARGS = ("applications", 0, "args")


@pytest.mark.parametrize(
    ("path", "key", "hint"),
    [
        (("proxy_locatoin",), "proxy_locatoin", "proxy_location"),
        (("http_options", "prot"), "http_options.prot", "port"),
        (("applications", 0, "route_prefx"), "applications[0].route_prefx", "route_prefix"),
        (
            ("applications", 0, "deployments", 0, "nam"),
            "applications[0].deployments[0].nam",
            "name",
        ),
        (
            ("applications", 0, "deployments", 0, "user_config", "num_shard"),
            "applications[0].deployments[0].user_config.num_shard",
            "num_shards",
        ),
        ((*ARGS, "atention"), "applications[0].args.atention", "attention"),
        ((*ARGS, "model", "dtyp"), "applications[0].args.model.dtyp", "dtype"),
        ((*ARGS, "attention", "max_num_seq"), "applications[0].args.attention.max_num_seq", "seqs"),
        (
            (*ARGS, "ingress", "limits", "max_tool"),
            "applications[0].args.ingress.limits.max_tool",
            "max_tools",
        ),
        (
            (*ARGS, "experts", "resources", "num_gpu"),
            "applications[0].args.experts.resources.num_gpu",
            "num_gpus",
        ),
    ],
)
def test_a_misspelt_key_is_refused_by_name_with_the_nearest_known(
    tmp_path: Path, path: tuple[str | int, ...], key: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_ray_config(edited(tmp_path, path, 1))
    assert caught.value.key == key
    assert "unknown key" in caught.value.problem
    assert hint in caught.value.problem


@pytest.mark.parametrize(
    ("key", "value", "section"),
    [
        ("num_replicas", 2, "args.experts.num_replicas"),
        ("ray_actor_options", {"num_cpus": 2}, "args.experts.resources"),
        ("max_ongoing_requests", 10, "max_waiting"),
    ],
)
def test_a_deployment_setting_outside_args_is_refused_with_the_place_it_belongs(
    tmp_path: Path, key: str, value: object, section: str
) -> None:
    path = edited(tmp_path, ("applications", 0, "deployments", 0, key), value)
    problems = find_problems(path)
    assert [problem.key for problem in problems] == [f"applications[0].deployments[0].{key}"]
    assert section in problems[0].problem


def test_our_keys_beside_args_are_refused(tmp_path: Path) -> None:
    problems = find_problems(edited(tmp_path, ("applications", 0, "attention"), {}))
    assert [problem.key for problem in problems] == ["applications[0].attention"]


def test_every_problem_is_found_in_one_run(tmp_path: Path) -> None:
    path = edited(tmp_path, ("http_options", "prot"), 1)
    document = yaml.safe_load(path.read_text())
    document["applications"][0]["args"]["model"]["dtype"] = "float16"
    path.write_text(yaml.safe_dump(document))
    assert {problem.key for problem in find_problems(path)} == {
        "http_options.prot",
        "applications[0].args.model.dtype",
    }


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ((*ARGS, "mode"), "local", "does nothing in mode local"),
        ((*ARGS, "ingress", "request_timeout_s"), 700, "before args.ingress.request_timeout_s"),
        ((*ARGS, "ingress", "port"), 8000, "does nothing in mode cluster"),
        ((*ARGS, "ingress", "limits", "max_total_choices"), 8, "below max_choices 16"),
        ((*ARGS, "ingress", "limits", "template_timeout_s"), 700, "ends a request before"),
        ((*ARGS, "experts", "num_shards"), 4, "given twice"),
        ((*ARGS, "experts", "transport"), "inproc", "one process only"),
        (("applications", 0, "import_path"), "other:build", "not this project's builder"),
        ((*ARGS, "model", "kernels"), "cuda", "num_gpus above 0"),
    ],
)
def test_an_impossible_combination_is_refused_with_the_reason(
    tmp_path: Path, path: tuple[str | int, ...], value: object, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_ray_config(edited(tmp_path, path, value))


def test_a_missing_file_and_broken_yaml_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="readable file"):
        check_ray_config(tmp_path / "absent.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(ConfigError, match="not YAML"):
        check_ray_config(broken)


def test_proxies_that_others_reach_need_keys_or_a_word_that_none_are_wanted(tmp_path: Path) -> None:
    exposed = edited(tmp_path, ("http_options", "host"), "0.0.0.0")
    (problem,) = find_problems(exposed)
    assert problem.key == "http_options.host"
    assert "allow_unauthenticated_network_access" in problem.problem
    document = yaml.safe_load(exposed.read_text())
    for security in (
        {"allow_unauthenticated_network_access": True},
        {"api_keys_file": "/etc/trinity/keys"},
        {"api_keys": [{"name": "a", "sha256": "0" * 64}]},
    ):
        document["applications"][0]["args"]["security"] = security
        exposed.write_text(yaml.safe_dump(document))
        assert find_problems(exposed) == []


def test_link_certificates_are_given_together(tmp_path: Path) -> None:
    path = edited(tmp_path, (*ARGS, "security", "tls_cert_file"), "/etc/trinity/cert.pem")
    with pytest.raises(ConfigError, match="given together"):
        check_ray_config(path)
