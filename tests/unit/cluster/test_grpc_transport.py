"""What only gRPC has: certificates, and a listener that ends with its links."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cluster.deadline import Deadline
from cluster.errors import LinkLostError
from cluster.tls import TlsFiles
from cluster.transport.grpc import GrpcTransport
from cluster.wire import Ping
from tests.contract.transport_cases import connect_pair
from tests.support.certificates import make_certificates, replace_with


def test_both_ends_show_certificates_and_a_rank_without_one_is_turned_away(tmp_path: Path) -> None:
    transport = GrpcTransport(make_certificates(tmp_path))
    listener = transport.listen("grpc://127.0.0.1:0")
    pair = connect_pair(transport, listener)
    pair.rank.link.send(Ping(1))
    pair.until(lambda: pair.shard.arrived == [Ping(1)], "arrival over TLS")
    with pytest.raises(LinkLostError):
        GrpcTransport().connect(listener.address, Deadline.after(1.0))
    pair.close()


def test_a_rotation_counts_for_new_links_and_leaves_old_ones_alone(tmp_path: Path) -> None:
    files, others = make_certificates(tmp_path / "a"), make_certificates(tmp_path / "b")
    old = TlsFiles(*(str(shutil.copy(name, tmp_path)) for name in files.names))
    transport = GrpcTransport(files)
    pair = connect_pair(transport, transport.listen("grpc://127.0.0.1:0"))
    replace_with(files, others)
    link = transport.connect(pair.listener.address, Deadline.after(5.0))
    link.close()
    with pytest.raises(LinkLostError):
        GrpcTransport(old).connect(pair.listener.address, Deadline.after(1.0))
    pair.rank.link.send(Ping(2))
    pair.until(lambda: pair.shard.arrived == [Ping(2)], "arrival over the old link")
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
