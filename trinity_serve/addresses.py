"""Where our own listeners are bound and what others connect to."""

from __future__ import annotations

import socket

from cluster.errors import ConfigError
from trinity_serve.config import ServeConfig

LOOPBACK = "127.0.0.1"


def own_hosts(config: ServeConfig, node_host: str) -> tuple[str, str]:
    """Return (host to bind, host to advertise) for a process on the node with this address."""
    if config.mode == "local":
        return LOOPBACK, LOOPBACK
    bind_host = config.network.bind_host or node_host
    return bind_host, config.network.advertise_host or bind_host


def url_of(host: str, port: int, scheme: str = "http") -> str:
    """Return the URL of a server; addresses of IPv6 stand in brackets."""
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Return a socket that listens for HTTP; port 0 takes a free one.

    `shared`: other processes that ask for the same may listen there too, each for a part of the
    connections. Raises `ConfigError` when the address cannot be listened on.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024, reuse_port=shared)
    except OSError as error:
        problem = f"{host}:{port} cannot be listened on ({error.strerror})"
        raise ConfigError("ServeConfig", "ingress.port", problem, "a free port, or 0") from error


def claim_port(host: str, port: int) -> int:
    """Return `port`, or a free one for 0, after making sure that it can be listened on.

    Raises `ConfigError` like `listen`.
    """
    with listen(host, port) as listening:
        return int(listening.getsockname()[1])
