"""Ways to carry frames between ranks and shards, chosen by an address's scheme."""

from __future__ import annotations

from importlib import import_module
from typing import Final

from cluster.errors import ConfigError
from cluster.metrics import Metrics
from cluster.tls import TlsFiles
from cluster.transport.base import Transport

# A transport is one file and one line here. The file is imported when it is first asked for:
# inline mode pays for no gRPC.
_MODULES: Final = {
    "unix": "cluster.transport.local",
    "grpc": "cluster.transport.grpc",
    "collective+unix": "cluster.transport.collective.transport",
    "collective+grpc": "cluster.transport.collective.transport",
}


def transport_for(
    address: str, tls: TlsFiles | None = None, metrics: Metrics | None = None
) -> Transport:
    """Return the transport of an address such as ``unix:/folder/socket`` or ``grpc://host:port``.

    `tls` is for transports that cross hosts; a Unix socket needs none and ignores it. `metrics` is
    where its links count, which one thread owns (see `Metrics`). In-process
    links belong to the `InprocTransport` object of their process and cannot be had by address.
    Raises `ConfigError` for an unknown scheme.
    """
    scheme = address.partition(":")[0]
    module = _MODULES.get(scheme)
    if module is None:
        raise ConfigError("address", address, f"unknown scheme {scheme!r}", ", ".join(_MODULES))
    transport = import_module(module).open_transport(tls)
    assert isinstance(transport, Transport)
    transport.metrics = metrics
    return transport
