"""The section `security` of `ServeConfig`: who may call, and which links are encrypted."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cluster.tls import TlsFiles

Scope = Literal["inference", "admin"]
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")


class ApiKeyRecord(BaseModel):
    """One API key as it rests: its name, its hash, what it may do and how much of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """What logs call it: letters, digits and ``._@-``."""
    sha256: str
    """Of the key's text, in hex. Keys are random, so that no slow hash is needed."""
    scopes: tuple[Scope, ...] = Field(default=("inference",), min_length=1)
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Prompt and output together."""
    max_concurrent_streams: int | None = Field(default=None, ge=1)
    """Choices that are being made at once."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("a name has 1 to 64 letters, digits or . _ @ -")
        return name

    @field_validator("sha256")
    @classmethod
    def _check_sha256(cls, digest: str) -> str:
        if not _SHA256.fullmatch(digest):
            raise ValueError("64 hex digits are needed; `trinity keys new` makes them")
        return digest


class SecurityConfig(BaseModel):
    """API keys, the guard of the network, TLS between ranks, shards and ingresses."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    api_keys_file: str | None = None
    """A file of `trinity keys new`, at the same path on every node with an ingress; a change counts
    within seconds."""
    api_keys: tuple[ApiKeyRecord, ...] = ()
    """Keys given here, as hashes."""
    allow_unauthenticated_network_access: bool = False
    """Answer callers from other machines although no API key is configured."""
    salt_prefix_cache_per_key: bool = False
    """Keys never share cached prefixes, so that none can time whether another sent a prompt."""
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    tls_ca_file: str | None = None
    """Mutual TLS between ranks, shards and ingresses over TCP: PEM files at the same paths on every
    node, as `trinity certs` writes them. Read again when they change."""

    @property
    def link_tls(self) -> TlsFiles | None:
        """The files of `tls_...`, None when links are guarded by tokens alone."""
        if not (self.tls_cert_file and self.tls_key_file and self.tls_ca_file):
            return None
        return TlsFiles(self.tls_cert_file, self.tls_key_file, self.tls_ca_file)

    @property
    def has_keys(self) -> bool:
        """Whether callers must present a key."""
        return self.api_keys_file is not None or bool(self.api_keys)

    @model_validator(mode="after")
    def _check_tls(self) -> SecurityConfig:
        files = (self.tls_cert_file, self.tls_key_file, self.tls_ca_file)
        if any(files) and not all(files):
            raise ValueError("tls_cert_file, tls_key_file and tls_ca_file are given together")
        return self

    @model_validator(mode="after")
    def _check_names(self) -> SecurityConfig:
        names = [record.name for record in self.api_keys]
        if len(set(names)) != len(names):
            raise ValueError("two keys of api_keys have the same name")
        return self


def check_network_access(host: str, security: SecurityConfig, *, is_loopback: bool) -> None:
    """Raise ValueError when others than this machine could call at `host` without a key."""
    if not is_loopback and not security.has_keys:
        if security.allow_unauthenticated_network_access:
            return
        raise ValueError(
            f"{host} can be reached from other machines and no API key is configured; make one "
            f"with `trinity keys new` and give its file as security.api_keys_file, or set "
            f"security.allow_unauthenticated_network_access"
        )
