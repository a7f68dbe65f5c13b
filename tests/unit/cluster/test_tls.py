"""Contexts that follow their files."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.tls import Reloaded, TlsFiles, client_context, edge_context, server_context
from tests.support.certificates import LOOPBACK, make_certificates, replace_with


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, host: str = LOOPBACK) -> None:
    """Do a handshake in memory, and send one byte: a refusal of TLS 1.3 comes after it."""
    pipes = [ssl.MemoryBIO(), ssl.MemoryBIO()]
    ours = server.wrap_bio(pipes[0], pipes[1], server_side=True)
    theirs = client.wrap_bio(pipes[1], pipes[0], server_hostname=host)
    todo: list[Callable[[], object]] = [
        theirs.do_handshake,
        ours.do_handshake,
        lambda: theirs.write(b"x"),
        lambda: ours.read(1),
    ]
    for _ in range(20):
        for step in todo[:2] if len(todo) > 2 else todo[:1]:
            try:
                step()
            except ssl.SSLWantReadError:
                continue
            todo.remove(step)
        if not todo:
            return
    raise AssertionError("the handshake did not end")


def anonymous(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(files.ca_file)
    return context


def test_both_ends_of_one_cluster_accept_each_other(tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    shake_hands(server_context(files), client_context(files))


def test_a_peer_without_a_certificate_or_of_another_ca_is_refused(tmp_path: Path) -> None:
    files, others = make_certificates(tmp_path / "a"), make_certificates(tmp_path / "b")
    server = server_context(files)
    mixed = TlsFiles(others.cert_file, others.key_file, files.ca_file)
    for client in (anonymous(files), client_context(mixed), client_context(others)):
        with pytest.raises(ssl.SSLError):
            shake_hands(server, client)


def test_a_certificate_of_another_host_is_refused(tmp_path: Path) -> None:
    files = make_certificates(tmp_path, "10.0.0.9")
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(server_context(files), client_context(files))


def test_changed_files_count_for_the_next_handshake_the_ca_too(tmp_path: Path) -> None:
    files, others = make_certificates(tmp_path / "a"), make_certificates(tmp_path / "b")
    server, before, after = server_context(files), client_context(files), client_context(others)
    shake_hands(server, before)
    replace_with(files, others)
    shake_hands(server, after)
    with pytest.raises(ssl.SSLError):
        shake_hands(server, before)


def test_files_in_the_middle_of_a_change_leave_the_last_good_ones(tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    server, client = server_context(files), client_context(files)
    Path(files.cert_file).write_text("half")
    shake_hands(server, client)
    Path(files.key_file).unlink()
    shake_hands(server, client)


def test_an_https_port_asks_clients_for_nothing_and_follows_its_files(tmp_path: Path) -> None:
    files, others = make_certificates(tmp_path / "a"), make_certificates(tmp_path / "b")
    server = edge_context(files.cert_file, files.key_file)
    shake_hands(server, anonymous(files))
    trusting_others = anonymous(others)
    replace_with(files, others)
    shake_hands(server, trusting_others)


def test_what_cannot_be_loaded_at_first_is_raised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Reloaded((str(tmp_path / "x"),), (tmp_path / "x").read_bytes)
