"""What only Unix sockets have: files, folders and who may enter them."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from cluster.transport import transport_for
from cluster.transport.local import LocalTransport


def test_the_folder_is_made_for_its_user_alone(tmp_path: Path) -> None:
    listener = LocalTransport().listen(f"unix:{tmp_path}/new/socket")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    listener.close()
    assert not (tmp_path / "new" / "socket").exists()


def test_a_folder_that_others_may_enter_is_refused_with_its_mode(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    with pytest.raises(PermissionError, match="mode 0755"):
        LocalTransport().listen(f"unix:{tmp_path}/open/socket")


def test_the_socket_file_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.exists()
    LocalTransport().listen(f"unix:{path}").close()
    assert not path.exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    path.write_text("precious")
    with pytest.raises(FileExistsError):
        LocalTransport().listen(f"unix:{path}")
    assert path.read_text() == "precious"


def test_closing_leaves_the_socket_of_whoever_came_after(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/socket"
    first = LocalTransport().listen(address)
    os.unlink(tmp_path / "socket")
    second = LocalTransport().listen(address)
    first.close()
    assert (tmp_path / "socket").exists()
    second.close()


def test_a_path_that_a_socket_cannot_have_is_refused_with_the_limit(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="107 bytes"):
        LocalTransport().listen(f"unix:{tmp_path}/{'x' * 100}/socket")


def test_an_unknown_scheme_is_refused_naming_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match=r"'pigeon'.*unix, grpc"):
        transport_for("pigeon://loft")
