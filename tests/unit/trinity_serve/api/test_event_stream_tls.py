"""The event stream between machines, with certificates and without."""

from __future__ import annotations

import asyncio
import os
import pickle
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster.tls import TlsFiles, client_context
from tests.support.certificates import make_certificates, replace_with
from tests.unit.trinity_serve.api.test_event_stream import Ingress, eventually
from trinity_serve.api.event_codec import RankState
from trinity_serve.api.event_stream import EventSender, EventServer, StreamAddress
from trinity_serve.engine.request import EngineStats


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    return make_certificates(tmp_path / "ours")


@pytest.fixture
def ingress() -> Ingress:
    return Ingress()


@pytest.fixture
async def address(
    ingress: Ingress, files: TlsFiles, tmp_path: Path
) -> AsyncIterator[StreamAddress]:
    """Of a server with TLS, as a rank on another machine sees it."""
    server = EventServer("secret", ingress, files)
    found = await server.start(str(tmp_path / "events"), "127.0.0.1", "127.0.0.1")
    yield StreamAddress(str(tmp_path / "elsewhere"), found.host, found.port, found.token)
    await server.close()


def sender(address: StreamAddress, rank: str, tls: TlsFiles | None) -> EventSender:
    return EventSender(address, rank, lambda: RankState(EngineStats(), ""), lambda: None, tls)


async def test_a_rank_with_a_certificate_is_heard_after_a_rotation_too(
    address: StreamAddress, ingress: Ingress, files: TlsFiles, tmp_path: Path
) -> None:
    first = sender(address, "first", files)
    await eventually(lambda: bool(ingress.states))
    replace_with(files, make_certificates(tmp_path / "others"))
    second = sender(address, "second", files)
    await eventually(lambda: ("second", True) in ingress.connected)
    assert ("first", False) not in ingress.connected
    for each in (first, second):
        await each.close()


async def test_without_tls_or_with_another_ca_nobody_is_heard(
    address: StreamAddress, ingress: Ingress, files: TlsFiles, tmp_path: Path
) -> None:
    others = make_certificates(tmp_path / "others")
    mixed = TlsFiles(others.cert_file, others.key_file, files.ca_file)
    strangers = [sender(address, name, tls) for name, tls in (("a", None), ("b", mixed))]
    reader, _ = await asyncio.open_connection(address.host, address.port, ssl=client_context(mixed))
    with pytest.raises((OSError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    known = sender(address, "known", files)
    await eventually(lambda: ("known", True) in ingress.connected)
    assert {rank for rank, _ in ingress.connected} == {"known"}
    for each in (*strangers, known):
        await each.close()


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("framed", [False, True])
async def test_a_pickle_bomb_ends_its_own_connection_only(
    ingress: Ingress, tmp_path: Path, framed: bool
) -> None:
    server = EventServer("secret", ingress)
    address = await server.start(str(tmp_path / "events"), "127.0.0.1", "127.0.0.1")
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write((len(bomb).to_bytes(4, "little") if framed else b"") + bomb)
    writer.write_eof()
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()
    assert not (tmp_path / "exploded").exists()
    assert ingress.connected == []
    await server.close()


def test_the_context_speaks_no_old_tls(files: TlsFiles) -> None:
    assert client_context(files).minimum_version is ssl.TLSVersion.TLSv1_3
