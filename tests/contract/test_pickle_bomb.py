"""A pickle bomb at a shard's port is bytes like any."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cluster.transport.collective.link import CollectiveLink
from cluster.transport.grpc import GrpcLink
from cluster.transport.local import LocalLink
from cluster.wire import Ping
from tests.contract.transport_cases import CASES, base_of, connect_pair, open_pair

PORTS = [name for name, case in CASES.items() if case.has_bytes]


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@contextmanager
def connected(address: str) -> Iterator[socket.socket]:
    address = base_of(address)
    if address.startswith("unix:"):
        with closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.connect(address.removeprefix("unix:"))
            yield connection
    else:
        parts = urlsplit(address)
        with socket.create_connection((parts.hostname or "", parts.port or 0)) as connection:
            yield connection


@pytest.mark.parametrize("name", PORTS)
def test_a_bomb_instead_of_a_stream_does_nothing(name: str, tmp_path: Path) -> None:
    pair = open_pair(CASES[name], tmp_path)
    with connected(pair.listener.address) as connection:
        connection.sendall(pickle.dumps(Bomb(tmp_path / "exploded")))
        connection.shutdown(socket.SHUT_WR)
        pair.rank.link.send(Ping(1))
        pair.until(lambda: pair.shard.arrived == [Ping(1)], "a ping beside the bomb")
    assert not (tmp_path / "exploded").exists()
    pair.close()


@pytest.mark.parametrize("name", PORTS)
def test_a_bomb_instead_of_a_frame_is_refused_and_others_are_served(
    name: str, tmp_path: Path
) -> None:
    pair = open_pair(CASES[name], tmp_path)
    bomb, link = pickle.dumps(Bomb(tmp_path / "exploded")), pair.rank.link
    if isinstance(link, CollectiveLink):
        link = link._base
    if isinstance(link, GrpcLink):
        link._outbox.put(bomb)
    else:
        assert isinstance(link, LocalLink)
        link._sock.sendall(bomb)
        link._sock.shutdown(socket.SHUT_WR)
    pair.until(lambda: bool(pair.shard.arrived), "a refusal")
    assert isinstance(pair.shard.arrived[0], Exception)
    assert not (tmp_path / "exploded").exists()
    other = connect_pair(pair.transport, pair.listener)
    other.rank.link.send(Ping(2))
    other.until(lambda: other.shard.arrived == [Ping(2)], "another rank's ping")
    for end in (other.rank, other.shard):
        end.poller.remove(end.link)
        end.link.close()
        end.poller.close()
    pair.close()
