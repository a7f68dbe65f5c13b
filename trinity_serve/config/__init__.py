"""The one configuration: Serve's YAML in, one frozen `ServeConfig` out, parsed once.

A part of the system gets only its own section. Nothing here knows Ray or reads the environment.
"""

from trinity_serve.config.ray_file import (
    APPLICATION_IMPORT_PATH,
    check_ray_config,
    find_problems,
    load_serve_config,
    parse_serve_args,
)
from trinity_serve.config.sections import (
    AttentionConfig,
    ExpertsConfig,
    IngressConfig,
    KernelName,
    ModelConfig,
    NetworkConfig,
    ResourcesConfig,
    TransportName,
)
from trinity_serve.config.security import ApiKeyRecord, SecurityConfig
from trinity_serve.config.serve_config import Mode, PoolTarget, ServeConfig

__all__ = [
    "APPLICATION_IMPORT_PATH",
    "ApiKeyRecord",
    "AttentionConfig",
    "ExpertsConfig",
    "IngressConfig",
    "KernelName",
    "Mode",
    "ModelConfig",
    "NetworkConfig",
    "PoolTarget",
    "ResourcesConfig",
    "SecurityConfig",
    "ServeConfig",
    "TransportName",
    "check_ray_config",
    "find_problems",
    "load_serve_config",
    "parse_serve_args",
]
