"""From the options of `trinity serve` to a `ServeConfig`, and what is printed when it stands."""

from __future__ import annotations

import json
import shlex
from typing import get_args

import pytest
from click.testing import CliRunner

from cluster.errors import ConfigError
from trinity_serve.api.keys import records_of
from trinity_serve.cli.serve import OPTION_KEYS, RUNNERS, command, config_from_options, ready_text
from trinity_serve.config import Mode, ServeConfig


def test_an_option_that_is_not_given_keeps_the_default_of_its_key() -> None:
    options = dict.fromkeys(OPTION_KEYS, None) | {"model": "models/demo"}
    expected = ServeConfig.model_validate({"mode": "inline", "model": {"path": "models/demo"}})
    assert config_from_options("inline", options) == expected


def test_each_option_sets_its_key() -> None:
    options = {
        "model": "m",
        "served_model_name": "name",
        "dtype": "float32",
        "kernels": "reference",
        "max_model_len": 128,
        "shards": 3,
        "max_num_seqs": 8,
        "max_waiting": 9,
        "kv_memory": "64MiB",
        "threads": 2,
        "host": "::1",
        "port": 0,
        "root_path": "/llm",
        "tls_cert_file": "cert.pem",
        "tls_key_file": "key.pem",
        "api_keys_file": "keys",
        "traces": "http://127.0.0.1:4318",
        "api_keys": records_of("ops:admin=" + "k" * 20),
        "allow_unauthenticated_network_access": True,
    }
    config = config_from_options("inline", options)
    assert {*options, "replicas", "ranks", "transport"} == set(OPTION_KEYS)
    on_ray = {"model": "m", "shards": 3, "replicas": 2, "ranks": 4, "transport": "grpc"}
    scale = config_from_options("local", on_ray)
    assert scale.experts.num_replicas == 2
    assert scale.attention.num_replicas == 4
    assert scale.experts.transport == "grpc"
    assert config.model.model_dump() == {
        "path": "m",
        "served_name": "name",
        "dtype": "float32",
        "kernels": "reference",
        "max_model_len": 128,
    }
    assert config.experts.num_shards == 3
    assert config.attention.max_num_seqs == 8
    assert config.attention.max_waiting == 9
    assert config.observability.traces == "http://127.0.0.1:4318"
    assert config.attention.num_threads == 2
    assert config.attention.kv_memory_bytes == 64 * 2**20
    assert (config.ingress.host, config.ingress.port) == ("::1", 0)
    tls = (config.ingress.tls_cert_file, config.ingress.tls_key_file)
    assert tls == ("cert.pem", "key.pem")
    assert config.security.api_keys_file == "keys"
    assert [record.name for record in config.security.api_keys] == ["ops"]
    assert config.security.allow_unauthenticated_network_access


def test_keys_come_from_the_environment_and_never_from_the_command_line() -> None:
    key = "k" * 24
    arguments = ["--model", "m", "--mode", "cluster", "--port", "1"]
    refused = CliRunner().invoke(command, [*arguments, "--api-keys", f"a={key}"])
    assert "TRINITY_API_KEYS" in refused.output
    assert key not in refused.output
    taken = CliRunner().invoke(command, arguments, env={"TRINITY_API_KEYS": "a=short"})
    assert isinstance(taken.exception, ConfigError)
    assert "5 characters" in str(taken.exception)


@pytest.mark.parametrize("mode", ["inline"])
def test_listening_to_the_network_without_keys_is_refused_unless_said_so(mode: Mode) -> None:
    options: dict[str, object] = {"model": "m", "host": "0.0.0.0"}
    with pytest.raises(ConfigError, match="allow_unauthenticated_network_access"):
        config_from_options(mode, options)
    config_from_options(mode, options | {"allow_unauthenticated_network_access": True})
    config_from_options(mode, options | {"api_keys_file": "keys"})


def test_every_option_sets_a_key_but_those_that_say_how_and_from_where() -> None:
    others = {"mode", "file", "config", "address"}
    assert {parameter.name for parameter in command.params} == {*OPTION_KEYS, *others}


def test_every_mode_has_a_runner() -> None:
    assert set(RUNNERS) == set(get_args(Mode))


def test_an_option_without_meaning_in_the_mode_is_refused_by_its_key() -> None:
    with pytest.raises(ConfigError, match=r"ingress\.port"):
        config_from_options("cluster", {"model": "m", "port": 8000})


@pytest.mark.parametrize("model", ["demo", 'it\'s a "name" with $(echo) in it'])
def test_the_printed_curl_line_survives_the_shell(model: str) -> None:
    line = ready_text("http://127.0.0.1:1234", model).splitlines()[2]
    curl, url, _, header, _, body = shlex.split(line)
    assert (curl, url) == ("curl", "http://127.0.0.1:1234/v1/chat/completions")
    assert header == "Content-Type: application/json"
    assert json.loads(body)["model"] == model
