"""Certificates of our own links: read from files, and read again when the files change.

Both ends show a certificate and trust those that the CA signed. A rotation needs no restart:
each new connection looks whether the files are others than before. Files that cannot be used then
(half a rotation) leave the last good ones in place.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files: both ends show a certificate and trust those that `ca_file` signed."""

    cert_file: str
    key_file: str
    ca_file: str

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (self.cert_file, self.key_file, self.ca_file)

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Return (CA, key, certificate). Raises OSError naming the file."""
        ca, key, cert = (
            Path(name).read_bytes() for name in (self.ca_file, self.key_file, self.cert_file)
        )
        return ca, key, cert


class Reloaded(Generic[T]):
    """What `load` makes of files, made anew when they have changed; thread-safe.

    Raises what `load` raises the first time; later failures are logged and change nothing.
    """

    def __init__(self, names: tuple[str, ...], load: Callable[[], T]) -> None:
        self._names = names
        self._load = load
        self._lock = Lock()
        self._stamps = self._look()
        self._loaded = load()

    def get(self) -> T:
        """Return what the files are now."""
        with self._lock:
            stamps = self._look()
            if stamps != self._stamps:
                self._stamps = stamps
                try:
                    self._loaded = self._load()
                except (OSError, ValueError) as error:
                    _log.warning("changed certificates cannot be used: %s", error)
            return self._loaded

    def _look(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(_stamp(name) for name in self._names)


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Return the accepting end's context: peers must show a certificate. Raises OSError."""
    return _reloading(files.names, lambda: _mutual(files, ssl.PROTOCOL_TLS_SERVER))


def edge_context(cert_file: str, key_file: str) -> ssl.SSLContext:
    """Return the context of an HTTPS port: clients show no certificate. Raises OSError."""
    return _reloading((cert_file, key_file), lambda: _edge(cert_file, key_file))


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Return the connecting end's context, of the files as they are. Raises OSError.

    The server's certificate must name the host that is connected to.
    """
    return _mutual(files, ssl.PROTOCOL_TLS_CLIENT)


def _reloading(names: tuple[str, ...], load: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """Return a context whose handshakes take the newest one; the callback runs for each."""
    reloaded = Reloaded(names, load)
    context = load()

    def take_newest(connection: ssl.SSLObject, name: str | None, old: ssl.SSLContext) -> None:
        connection.context = reloaded.get()

    context.sni_callback = take_newest
    return context


def _mutual(files: TlsFiles, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(files.cert_file, files.key_file)
    context.load_verify_locations(files.ca_file)
    return context


def _edge(cert_file: str, key_file: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert_file, key_file)
    return context


def _stamp(name: str) -> tuple[int, int, int]:
    try:
        status = os.stat(name)
    except OSError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino)
