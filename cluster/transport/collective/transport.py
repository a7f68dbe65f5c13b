"""Makes collective links: over Unix sockets on one host, over gRPC between hosts."""

from __future__ import annotations

from typing import Final

import torch

from cluster.deadline import Deadline
from cluster.errors import ConfigError, LinkLostError
from cluster.tls import TlsFiles
from cluster.transport.base import Link, Listener, Transport
from cluster.transport.collective.limits import Limits
from cluster.transport.collective.link import CollectiveLink
from cluster.transport.collective.negotiation import Place, Role, own_address_towards
from cluster.transport.grpc import GrpcTransport
from cluster.transport.local import LocalTransport
from cluster.wire import DEFAULT_MAX_FRAME_BYTES

PREFIX: Final = "collective+"
_LOOPBACK: Final = "127.0.0.1"
_CPU: Final = torch.device("cpu")


class CollectiveListener(Listener):
    """A base listener whose links may form groups."""

    def __init__(
        self, base: Listener, device: torch.device, limits: Limits, max_frame_bytes: int
    ) -> None:
        self.address = PREFIX + base.address
        self._base = base
        self._place = Place(device)
        self._limits = limits
        self._max_frame_bytes = max_frame_bytes

    def accept(self) -> Link | None:
        """See `Listener.accept`."""
        link = self._base.accept()
        if link is None:
            return None
        return CollectiveLink(link, Role.SHARD, self._place, self._limits, self._max_frame_bytes)

    def fileno(self) -> int:
        """The base's."""
        return self._base.fileno()

    def close(self) -> None:
        """See `Listener.close`."""
        self._base.close()


class CollectiveTransport(Transport):
    """Addresses are ``collective+unix:/folder/socket`` and ``collective+grpc://host:port``."""

    scheme = "collective"

    def __init__(
        self,
        limits: Limits | None = None,
        device: torch.device = _CPU,
        max_frame_bytes: int = DEFAULT_MAX_FRAME_BYTES,
    ) -> None:
        self._limits = limits or Limits()
        self._device = device
        self._max_frame_bytes = max_frame_bytes

    def listen(self, bind: str) -> CollectiveListener:
        """See `Transport.listen`."""
        base = self._base(bind).listen(bind.removeprefix(PREFIX))
        return CollectiveListener(base, self._device, self._limits, self._max_frame_bytes)

    def connect(self, address: str, deadline: Deadline) -> CollectiveLink:
        """See `Transport.connect`; a group is offered once the shard has sent its welcome."""
        base = self._base(address).connect(address.removeprefix(PREFIX), deadline)
        try:
            host = own_address_towards(_host_of(address))
        except OSError as error:
            base.close()
            raise LinkLostError(base.peer, f"no way to {address}: {error}") from error
        place = Place(self._device, host)
        return CollectiveLink(
            base, Role.RANK, place, self._limits, self._max_frame_bytes, self.metrics
        )

    def _base(self, address: str) -> Transport:
        if address.startswith(PREFIX + "unix:"):
            return LocalTransport(self._max_frame_bytes)
        return GrpcTransport(max_frame_bytes=self._max_frame_bytes)


def _host_of(address: str) -> str:
    _, slashes, host_port = address.partition("://")
    return host_port.rpartition(":")[0].strip("[]") if slashes else _LOOPBACK


def open_transport(tls: TlsFiles | None) -> CollectiveTransport:
    """Registry entry. Raises `ConfigError` with TLS: rows of a group are not encrypted."""
    if tls is not None:
        problem = "rows of a group are not encrypted, and mutual TLS is configured"
        raise ConfigError("transport", "collective", problem, "unix or grpc with TLS")
    return CollectiveTransport()
