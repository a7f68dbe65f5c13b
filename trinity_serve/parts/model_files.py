"""The model's files as a process finds them on its own node. Needs no torch."""

from __future__ import annotations

import socket
from pathlib import Path

from cluster.errors import ConfigError
from cluster.model_config import AfmoeConfig
from experts.hub import ModelFiles
from experts.quantised.config import read_quantisation
from trinity_serve.config import ServeConfig


def locate_model(config: ServeConfig) -> ModelFiles:
    """Find the model on this node. Raises `ConfigError` naming node and path."""
    path = config.model.path
    if path.startswith(("/", ".", "~")) and not Path(path).expanduser().is_dir():
        problem = f"{path} does not exist on node {socket.gethostname()}"
        raise ConfigError("ServeConfig", "model.path", problem, "a folder that every node has")
    return ModelFiles.locate(path)


def read_model_config(files: ModelFiles) -> AfmoeConfig:
    """Return the model's configuration.

    Raises `ConfigError`, also for weights stored in a form that is not read.
    """
    model = AfmoeConfig.from_json(files.folder / "config.json")
    read_quantisation(files.folder)
    return model


def read_model_shape(config: ServeConfig) -> tuple[int, int]:
    """Return (number of MoE layers, number of experts)."""
    model = read_model_config(locate_model(config))
    return model.num_moe_layers, model.num_experts


def check_num_shards(num_shards: int, model: AfmoeConfig) -> None:
    """Raise `ConfigError` when there would be a shard without experts."""
    if num_shards > model.num_experts:
        allowed = f"1 to {model.num_experts}, the model's number of experts"
        raise ConfigError("ServeConfig", "experts.num_shards", f"is {num_shards}", allowed)
