"""The checkpoint as a process finds it on its own node."""

from __future__ import annotations

from experts.checkpoint import Checkpoint
from trinity_serve.config import ServeConfig
from trinity_serve.parts.model_files import locate_model, read_model_config


def open_checkpoint(config: ServeConfig) -> Checkpoint:
    """Open the checkpoint on this node. Raises `ConfigError` naming node and path."""
    files = locate_model(config)
    return Checkpoint(files, read_model_config(files))
