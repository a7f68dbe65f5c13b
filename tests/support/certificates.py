"""Certificates for the loopback address."""

from __future__ import annotations

from pathlib import Path

from cluster.tls import TlsFiles
from trinity_serve.certificates import write_certificates

LOOPBACK = "127.0.0.1"


def make_certificates(folder: Path, host: str = LOOPBACK) -> TlsFiles:
    """Return a certificate of `host` under the CA of `folder`; again, a renewed one."""
    (own,) = write_certificates(folder, [host], days=2)
    return TlsFiles(*(str(own / name) for name in ("cert.pem", "key.pem", "ca.pem")))


def replace_with(files: TlsFiles, others: TlsFiles) -> None:
    """Put `others` where `files` are, each in one step."""
    for name, other in zip(files.names, others.names, strict=True):
        new = Path(name + ".other")
        new.write_bytes(Path(other).read_bytes())
        new.replace(name)
