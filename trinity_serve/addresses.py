"""Where our own listeners are bound and what others connect to."""

from __future__ import annotations

from trinity_serve.config import ServeConfig

LOOPBACK = "127.0.0.1"


def own_hosts(config: ServeConfig, node_host: str) -> tuple[str, str]:
    """Return (host to bind, host to advertise) for a process on the node with this address."""
    if config.mode == "local":
        return LOOPBACK, LOOPBACK
    bind_host = config.network.bind_host or node_host
    return bind_host, config.network.advertise_host or bind_host
