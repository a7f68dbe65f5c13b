"""The checkpoint as a process finds it on its own node."""

from __future__ import annotations

import socket
from pathlib import Path

from cluster.errors import ConfigError
from experts.checkpoint import Checkpoint
from trinity_serve.config import ServeConfig


def open_checkpoint(config: ServeConfig) -> Checkpoint:
    """Open the checkpoint on this node. Raises `ConfigError` naming node and path."""
    path = config.model.path
    if path.startswith(("/", ".")) and not Path(path).is_dir():
        problem = f"{path} does not exist on node {socket.gethostname()}"
        raise ConfigError("ServeConfig", "model.path", problem, "a folder that every node has")
    return Checkpoint.open(path)


def read_model_shape(config: ServeConfig) -> tuple[int, int]:
    """Return (number of MoE layers, number of experts)."""
    model = open_checkpoint(config).config
    return model.num_moe_layers, model.num_experts
