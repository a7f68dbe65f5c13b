"""What only gRPC has: certificates, and a listener that ends with its links."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cluster.deadline import Deadline
from cluster.errors import LinkLostError
from cluster.transport.base import TlsFiles
from cluster.transport.grpc import GrpcTransport
from cluster.wire import Ping
from tests.contract.transport_cases import connect_pair


def make_certificates(folder: Path) -> TlsFiles:
    """Make a CA and one certificate for the loopback address, signed by it."""
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1\n")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for arguments in (
        ("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test ca"),
        ("req", *key, "-keyout", "key.pem", "-out", "request", "-subj", "/CN=shard"),
        (
            *("x509", "-req", "-in", "request", "-extfile", "san", "-days", "2"),
            *("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "cert.pem"),
        ),
    ):
        subprocess.run(
            ["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=30
        )
    return TlsFiles(*(str(folder / name) for name in ("cert.pem", "key.pem", "ca.pem")))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
def test_both_ends_show_certificates_and_a_rank_without_one_is_turned_away(tmp_path: Path) -> None:
    transport = GrpcTransport(make_certificates(tmp_path))
    listener = transport.listen("grpc://127.0.0.1:0")
    pair = connect_pair(transport, listener)
    pair.rank.link.send(Ping(1))
    pair.until(lambda: pair.shard.arrived == [Ping(1)], "arrival over TLS")
    with pytest.raises(LinkLostError):
        GrpcTransport().connect(listener.address, Deadline.after(1.0))
    pair.close()


def test_a_missing_certificate_names_its_file(tmp_path: Path) -> None:
    files = TlsFiles(*(str(tmp_path / name) for name in ("cert.pem", "key.pem", "ca.pem")))
    with pytest.raises(FileNotFoundError, match=r"ca\.pem"):
        GrpcTransport(files).listen("grpc://127.0.0.1:0")


def test_closing_the_listener_ends_its_links() -> None:
    transport = GrpcTransport()
    pair = connect_pair(transport, transport.listen("grpc://127.0.0.1:0"))
    pair.listener.close()
    pair.until(lambda: bool(pair.rank.arrived), "the end")
    assert isinstance(pair.rank.arrived[0], LinkLostError)
    pair.close()


def test_a_taken_port_is_refused_with_its_address() -> None:
    listener = GrpcTransport().listen("grpc://127.0.0.1:0")
    with pytest.raises(OSError, match=listener.address):
        GrpcTransport().listen(listener.address)
    listener.close()
