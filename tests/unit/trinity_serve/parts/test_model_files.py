from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cluster.errors import CheckpointError, ConfigError
from trinity_serve.config import ServeConfig, parse_serve_args
from trinity_serve.parts.model_files import (
    check_num_shards,
    locate_model,
    read_model_config,
    read_model_shape,
)


def config_for(path: str) -> ServeConfig:
    return parse_serve_args({"model": {"path": path}})


def test_the_shape_is_that_of_the_checkpoint(tiny_checkpoint: Path) -> None:
    assert read_model_shape(config_for(str(tiny_checkpoint))) == (5, 16)


@pytest.mark.parametrize("path", ["/nowhere/model", "./nowhere", "~/nowhere-either"])
def test_a_path_that_is_not_here_is_named_with_the_node(path: str) -> None:
    with pytest.raises(ConfigError, match=rf"{path} does not exist on node {socket.gethostname()}"):
        locate_model(config_for(path))


def test_what_is_neither_path_nor_hub_id_is_refused() -> None:
    with pytest.raises(CheckpointError, match="Hub id"):
        locate_model(config_for("nowhere"))


def test_more_shards_than_experts_are_refused_with_the_limit(tiny_checkpoint: Path) -> None:
    model = read_model_config(locate_model(config_for(str(tiny_checkpoint))))
    check_num_shards(16, model)
    with pytest.raises(ConfigError, match=r"experts.num_shards.*is 17.*1 to 16"):
        check_num_shards(17, model)
