"""`ServeConfig` refuses what cannot work or would do nothing."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cluster.errors import ConfigError
from trinity_serve.config import ServeConfig, parse_serve_args

MODEL = {"path": "models/demo"}
TLS_FILES = {f"tls_{part}_file": f"/certs/{part}.pem" for part in ("cert", "key", "ca")}


def test_the_served_name_is_the_last_component_of_the_path() -> None:
    assert parse_serve_args({"model": MODEL}).model.public_name == "demo"


def test_sizes_may_carry_units() -> None:
    config = parse_serve_args({"model": MODEL, "attention": {"kv_memory_bytes": "2GiB"}})
    assert config.attention.kv_memory_bytes == 2 * 2**30


def test_the_configuration_cannot_be_changed() -> None:
    config = parse_serve_args({"model": MODEL})
    with pytest.raises(ValidationError, match="frozen"):
        config.mode = "inline"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({}, "model: is required"),
        ({"mode": "inline", "experts": {"transport": "grpc"}}, "processes of their own"),
        ({"mode": "local", "experts": {"transport": "inproc"}}, "one process only"),
        ({"mode": "inline", "experts": {"transport": "collective"}}, "processes of their own"),
        (
            {"experts": {"transport": "collective"}, "security": TLS_FILES},
            "collective does not encrypt rows",
        ),
        ({"mode": "inline", "attention": {"num_replicas": 1}}, "does nothing in mode inline"),
        ({"mode": "inline", "experts": {"dead_after_s": 3}}, "does nothing in mode inline"),
        ({"mode": "local", "network": {"bind_host": "0.0.0.0"}}, "does nothing in mode local"),
        ({"mode": "local", "ingress": {"host": "0.0.0.0"}}, "not a loopback address"),
        ({"attention": {"max_num_seqs": 9, "max_num_batched_tokens": 8}}, "max_num_seqs 9"),
        ({"attention": {"max_prefill_chunk": 5000}}, "no step could hold"),
        ({"experts": {"dead_after_s": 0.4}}, "two ping intervals"),
        ({"experts": {"orphan_grace_s": 1}}, "must be above dead_after_s"),
        ({"ingress": {"max_choices": 300}}, "max_total_choices 256 is below max_choices 300"),
        ({"ingress": {"limits": {"max_tools_bytes": "9MiB"}}}, "no body could hold so many"),
        (
            {"ingress": {"request_timeout_s": 3, "limits": {"grammar_timeout_s": 4}}},
            "limits.grammar_timeout_s 4 is above request_timeout_s 3",
        ),
        ({"ingress": {"cors_origins": ["chat.example.org"]}}, "ingress.cors_origins"),
        ({"ingress": {"root_path": "llm"}}, "ingress.root_path"),
        ({"ingress": {"root_path": "/llm/"}}, "ingress.root_path"),
        ({"ingress": {"cors_origins": ["*"]}}, r"cors_origins \* without API keys"),
        ({"ingress": {"limits": {"max_prompts": 0}}}, "ingress.limits.max_prompts"),
        ({"ingress": {"limits": {"max_prompt": 9}}}, "did you mean 'max_prompts'"),
        (
            {"attention": {"resources": {"num_gpus": 1}}, "model": MODEL | {"kernels": "cpu"}},
            "idle",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(args: dict[str, object], reason: str) -> None:
    whole = {"model": MODEL} | args if args else {}
    with pytest.raises(ConfigError, match=reason):
        parse_serve_args(whole)


def test_limits_that_follow_from_other_keys_need_not_be_lowered_with_them() -> None:
    ingress = {"max_body_bytes": "64KiB", "request_timeout_s": 2}
    assert parse_serve_args({"model": MODEL, "ingress": ingress}).ingress.limits.max_tools == 128


def test_a_config_survives_dumping_only_what_was_given() -> None:
    config = parse_serve_args({"mode": "local", "model": MODEL, "ingress": {"port": 0}})
    again = ServeConfig.model_validate(config.model_dump(exclude_unset=True))
    assert again == config
