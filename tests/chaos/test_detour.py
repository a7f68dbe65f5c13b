"""A way to a running listener leads through the proxy, and is straight again afterwards."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.detour import Detour, listening_paths


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[tuple[socket.socket, Path]]:
    """A socket that listens, and its path."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.settimeout(5.0)
        yield listening, path


def connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(5.0)
    client.connect(str(path))
    return client


def test_a_process_is_found_to_listen_and_a_connected_socket_does_not_count(
    listener: tuple[socket.socket, Path],
) -> None:
    listening, path = listener
    with connected(path), listening.accept()[0]:
        assert listening_paths(os.getpid()).count(path) == 1
    assert path not in listening_paths(os.getppid())


def test_new_connections_pass_through_the_proxy_and_old_ones_do_not(
    listener: tuple[socket.socket, Path],
) -> None:
    listening, path = listener
    with connected(path) as old, listening.accept()[0] as old_end:
        with Detour(path, seed=1), connected(path) as new:
            new_end, _ = listening.accept()
            new.sendall(b"through")
            assert new_end.recv(7) == b"through"
            old.sendall(b"past")
            assert old_end.recv(4) == b"past"
        # With the proxy its connections are gone.
        assert new_end.recv(1) == b""
        new_end.close()
        old.sendall(b"still")
        assert old_end.recv(5) == b"still"
    with connected(path) as later, listening.accept()[0] as later_end:
        later.sendall(b"straight")
        assert later_end.recv(8) == b"straight"


def test_a_listener_that_ended_meanwhile_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        with Detour(path, seed=1):
            path.with_name("socket.behind").unlink()
    assert list(tmp_path.iterdir()) == []
