"""Who may call which route: judged by a request's headers, before its body is read.

Costs one hash per request and nothing per token.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.types import Scope

from cluster.errors import InvalidApiKeyError, ScopeRefusedError, UnauthenticatedNetworkError
from trinity_serve.api.keys import KeyRing
from trinity_serve.api.page import is_page
from trinity_serve.api.rates import KeyAccount
from trinity_serve.config.security import ApiKeyRecord, SecurityConfig

_log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/health", "/ping", "/ready"})
"""Probes of the platform, which carry no keys. They say yes or no; see `status.ready`."""
ADMIN_PATHS = ("/v1/cluster",)
EITHER_SCOPE = frozenset({"/metrics", "/load", "/version", "/openapi.json"})
_BEARER = "bearer "


@dataclass(slots=True)
class Caller:
    """Whose request it is; in `scope["state"]["caller"]` when keys are configured."""

    record: ApiKeyRecord
    account: KeyAccount
    salt: bytes = b""
    """Keeps its cached prefixes apart; empty where keys may share."""

    @property
    def is_admin(self) -> bool:
        """Whether the key may change how the server runs."""
        return "admin" in self.record.scopes


def caller_of(scope: Scope) -> Caller | None:
    """Return whose request it is, None when nobody was asked for a key."""
    state: Mapping[str, object] = scope.get("state") or MappingProxyType({})
    caller = state.get("caller")
    return caller if isinstance(caller, Caller) else None


@dataclass
class Gate:
    """Lets requests in. Owned by one event loop.

    Without a `ring` everybody on this machine may call everything but what guards itself, and
    callers from elsewhere only when `open_to_network`.
    """

    ring: KeyRing | None = None
    open_to_network: bool = False
    salt_per_key: bool = False
    clock: Callable[[], float] = time.monotonic
    _accounts: dict[str, Caller] = field(default_factory=dict)

    def admit(self, scope: Scope, headers: Headers) -> None:
        """Let a request in, and note in its state whose it is where keys are asked for.

        Raises `InvalidApiKeyError` (401), `ScopeRefusedError` and `UnauthenticatedNetworkError`
        (403), `RateLimitedError` (429).
        """
        # As the router sees it: below a prefix (Serve's `route_prefix`, `root_path`) the whole path
        # would make an admin route look like any other.
        path = get_route_path(scope)
        state = scope.setdefault("state", {})
        # Reasons name experts, shards and nodes.
        state["tells_reasons"] = self.ring is None
        given = _given_key(headers)
        if self.ring is None:
            if path not in OPEN_PATHS and not self.open_to_network and not _is_local(scope):
                raise UnauthenticatedNetworkError(_host(scope))
            return
        record = self.ring.find(given) if given else None
        open_to_all = path in OPEN_PATHS or is_page(scope["method"], path)
        if record is None:
            if open_to_all or (_is_admin(path) and _is_local(scope)):
                # Admin routes let a caller in who can read this server's token file, too.
                return
            _log.info("refused %s %s: %s", scope["method"], path[:100], _reason(given))
            raise InvalidApiKeyError(bool(given))
        if not open_to_all:
            _check_scope(record, path)
        caller = state["caller"] = self._caller(record)
        state["tells_reasons"] = True
        if scope["method"] == "POST" and not _is_admin(path):
            caller.account.request(self.clock())

    def _caller(self, record: ApiKeyRecord) -> Caller:
        """Return the key's caller; with a new account when its record has changed."""
        known = self._accounts.get(record.name)
        if known is None or known.record != record:
            account = KeyAccount(record, self.clock())
            salt = _salt_of(record) if self.salt_per_key else b""
            known = self._accounts[record.name] = Caller(record, account, salt)
        return known


def gate_of(security: SecurityConfig) -> Gate:
    """Return the gate of a configuration. Raises `ConfigError` for a key file that is wrong."""
    ring = None
    if security.has_keys:
        file = None if security.api_keys_file is None else Path(security.api_keys_file)
        ring = KeyRing(security.api_keys, file)
    return Gate(
        ring,
        security.allow_unauthenticated_network_access,
        security.salt_prefix_cache_per_key,
    )


def _salt_of(record: ApiKeyRecord) -> bytes:
    return hashlib.blake2b(record.sha256.encode(), digest_size=16, person=b"cache-salt").digest()


def _reason(given: str) -> str:
    return "an unknown API key" if given else "no API key"


def _given_key(headers: Headers) -> str:
    given = headers.get("authorization", "")
    if given[: len(_BEARER)].lower() == _BEARER:
        return given[len(_BEARER) :].strip()
    # Anthropic's clients.
    return headers.get("x-api-key", "")


def _is_admin(path: str) -> bool:
    return path.startswith(ADMIN_PATHS)


def _check_scope(record: ApiKeyRecord, path: str) -> None:
    if path in EITHER_SCOPE:
        return
    needed = "admin" if _is_admin(path) else "inference"
    if needed not in record.scopes:
        raise ScopeRefusedError(record.name, needed)


def _host(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "an unknown address"


def _is_local(scope: Scope) -> bool:
    try:
        address = ipaddress.ip_address(_host(scope).partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
