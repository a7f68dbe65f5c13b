"""`ServeConfig`: all sections together, and which of them mean something in which mode."""

from __future__ import annotations

import ipaddress
from typing import Literal

from pydantic import Field, model_validator

from trinity_serve.config.observability import ObservabilityConfig
from trinity_serve.config.sections import (
    AttentionConfig,
    ExpertsConfig,
    IngressConfig,
    ModelConfig,
    NetworkConfig,
    Section,
    check_copies,
)
from trinity_serve.config.security import SecurityConfig, check_network_access

Mode = Literal["inline", "local", "cluster"]

_LINK_TLS = ("tls_cert_file", "tls_key_file", "tls_ca_file")
_EDGE_TLS = ("tls_cert_file", "tls_key_file")
_WITHOUT_MEANING: dict[Mode, dict[str, tuple[str, ...]]] = {
    "inline": {
        "attention": ("num_replicas", "micro_batch_rows", "autoscaling", "resources"),
        "experts": (
            "num_replicas",
            "domain_label",
            "num_threads",
            "ping_interval_s",
            "dead_after_s",
            "coverage_grace_s",
            "hedge_factor",
            "hedge_floor_s",
            "hedge_share",
            "replica_bytes",
            "load_report_s",
            "balance_margin",
            "move_bytes_per_s",
            "warm_spare",
            "orphan_grace_s",
            "resources",
        ),
        "ingress": ("num_replicas", "admin_token_folder", "resources"),
        "network": ("bind_host", "advertise_host"),
        "security": _LINK_TLS,
    },
    "local": {
        "ingress": _EDGE_TLS,
        "network": ("bind_host", "advertise_host"),
        "security": (*_LINK_TLS, "allow_unauthenticated_network_access"),
    },
    "cluster": {"ingress": ("host", "port", *_EDGE_TLS)},
}
"""Keys that nothing reads in a mode; to give one there is refused, by its name."""


class PoolTarget(Section):
    """What may change while serving: the `user_config` of deployment `ExpertPool`."""

    num_shards: int = Field(ge=1)
    num_replicas: int = Field(default=1, ge=1)
    replica_bytes: int = Field(default=0, ge=0, strict=True)
    """A plain number: Serve hands it to the pool as it stands in the file."""

    @model_validator(mode="after")
    def _check_copies(self) -> PoolTarget:
        check_copies(self.num_shards, self.num_replicas)
        return self


class ServeConfig(Section):
    """Everything the system is told, parsed once."""

    mode: Mode = "cluster"
    model: ModelConfig
    attention: AttentionConfig = AttentionConfig()
    experts: ExpertsConfig = ExpertsConfig()
    ingress: IngressConfig = IngressConfig()
    network: NetworkConfig = NetworkConfig()
    security: SecurityConfig = SecurityConfig()
    observability: ObservabilityConfig = ObservabilityConfig()

    @model_validator(mode="before")
    @classmethod
    def _one_shard_inline(cls, data: object) -> object:
        """In one process more shards are only more calls: one, unless a number is given."""
        if not isinstance(data, dict) or data.get("mode") != "inline":
            return data
        experts = data.get("experts", {})
        if not isinstance(experts, dict):
            return data
        return {**data, "experts": {"num_shards": 1, **experts}}

    @model_validator(mode="after")
    def _check_mode(self) -> ServeConfig:
        for section, keys in _WITHOUT_MEANING[self.mode].items():
            given = getattr(self, section).model_fields_set.intersection(keys)
            if given:
                raise ValueError(
                    f"{section}.{min(given)} does nothing in mode {self.mode}; leave it out"
                )
        return self

    @model_validator(mode="after")
    def _check_transport(self) -> ServeConfig:
        transport = self.experts.transport
        if self.mode == "inline" and transport not in ("auto", "inproc"):
            raise ValueError(
                f"experts.transport {transport} needs shards in processes of their own; "
                f"mode inline has one process (use auto or inproc, or mode local)"
            )
        if self.mode != "inline" and transport == "inproc":
            raise ValueError(
                f"experts.transport inproc works inside one process only, not in mode "
                f"{self.mode} (use auto, unix, grpc or collective)"
            )
        if transport == "collective" and self.security.link_tls is not None:
            raise ValueError(
                "experts.transport collective does not encrypt rows, and security asks for mutual "
                "TLS between processes (use auto or grpc)"
            )
        return self

    @model_validator(mode="after")
    def _check_devices(self) -> ServeConfig:
        if self.mode == "inline":
            return self
        for name, part in (("attention", self.attention), ("experts", self.experts)):
            num_gpus = part.resources.num_gpus
            if self.model.kernels == "cuda" and num_gpus == 0:
                raise ValueError(
                    f"model.kernels cuda needs {name}.resources.num_gpus above 0: "
                    f"Ray hides GPUs that were not asked for"
                )
            if self.model.kernels in ("reference", "cpu") and num_gpus > 0:
                raise ValueError(
                    f"{name}.resources.num_gpus {num_gpus:g} would sit idle with "
                    f"model.kernels {self.model.kernels}"
                )
        return self

    @model_validator(mode="after")
    def _check_loopback(self) -> ServeConfig:
        if self.mode == "local" and not is_loopback(self.ingress.host):
            raise ValueError(
                f"ingress.host {self.ingress.host} is not a loopback address; mode local serves "
                f"this machine only (use mode cluster to be reached from others)"
            )
        return self

    @model_validator(mode="after")
    def _check_origins(self) -> ServeConfig:
        if "*" in self.ingress.cors_origins and not self.security.has_keys:
            raise ValueError(
                "ingress.cors_origins * without API keys lets every page that a browser near this "
                "server opens call it; name the origins, or configure keys"
            )
        return self

    @model_validator(mode="after")
    def _check_network_access(self) -> ServeConfig:
        if self.mode != "cluster":  # there the Serve file's http_options.host counts
            check_network_access(
                self.ingress.host, self.security, is_loopback=is_loopback(self.ingress.host)
            )
        return self


def is_loopback(host: str) -> bool:
    """Return whether `host` is `localhost` or a loopback address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
