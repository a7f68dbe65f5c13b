"""A certificate authority of a cluster's own, and a certificate for each of its hosts.

Written for links between ranks, shards and ingresses: each certificate serves both ends. The CA's
key stays where it was made; whoever has it can let processes into the cluster.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cluster.errors import ConfigError

CA_FILE, CA_KEY_FILE = "ca.pem", "ca.key"
CERT_FILE, KEY_FILE = "cert.pem", "key.pem"
CA_DAYS = 3650
_CLOCKS_APART = datetime.timedelta(hours=1)


@dataclass(frozen=True)
class Authority:
    """A CA with its key."""

    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """Return the CA in `folder`, made there when there is none. Raises `ConfigError`."""
        cert_path, key_path = folder / CA_FILE, folder / CA_KEY_FILE
        if not cert_path.exists() and not key_path.exists():
            made = cls.make()
            _write(cert_path, _pem(made.cert), 0o644)
            _write(key_path, _key_pem(made.key), 0o600)
        try:
            cert = x509.load_pem_x509_certificate(cert_path.read_bytes())
            key = serialization.load_pem_private_key(key_path.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            supported = f"{CA_FILE} and {CA_KEY_FILE} of an earlier call, or neither"
            raise ConfigError(str(folder), "the CA", str(error), supported) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            problem = "its key is of another kind"
            raise ConfigError(str(folder), "the CA", problem, "an elliptic-curve key")
        return cls(cert, key)

    @classmethod
    def make(cls) -> Authority:
        """Return a new CA."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("Trinity cluster CA")
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        cert = (
            _begun(name, name, key, CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(cert, key)

    def issue(self, host: str, days: int) -> tuple[bytes, bytes]:
        """Return (certificate, key) as PEM for `host`, a name or an IP address."""
        key = ec.generate_private_key(ec.SECP256R1())
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        cert = (
            _begun(_name(host[:64]), self.cert.subject, key, days)
            .add_extension(x509.SubjectAlternativeName([_general_name(host)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(both), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return _pem(cert), _key_pem(key)


def write_certificates(folder: Path, hosts: Sequence[str], days: int) -> list[Path]:
    """Write a folder for each host (certificate, key, CA) and return them; see `trinity certs`.

    What is there for a host is replaced, the CA is kept. Raises `ConfigError`.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = Authority.open(folder)
    written = []
    for host in hosts:
        if not host or "/" in host or host.startswith("."):
            raise ConfigError("trinity certs", "host", f"is {host!r}", "a name or an IP address")
        cert, key = authority.issue(host, days)
        own = folder / host
        own.mkdir(mode=0o700, exist_ok=True)
        _write(own / KEY_FILE, key, 0o600)
        _write(own / CERT_FILE, cert, 0o644)
        _write(own / CA_FILE, _pem(authority.cert), 0o644)
        written.append(own)
    return written


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_APART)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(cert: x509.Certificate) -> bytes:
    return cert.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    """Put a file in place whole: who reads it meanwhile sees the old one or the new one."""
    half = path.with_name(path.name + ".new")
    file = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(file, "wb") as writing:
        writing.write(content)
    half.replace(path)
