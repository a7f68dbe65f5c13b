"""A server that is closed to strangers: its ports, HTTPS, slow clients and hostile bytes."""

from __future__ import annotations

import json
import os
import pickle
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import RunningServer, listening_with
from tests.fakes.scripted_engine import ScriptedEngine
from tests.support.certificates import make_certificates, replace_with
from tests.support.listening import listening_ports
from tests.support.server import trinity_server
from trinity_serve.api.keys import hash_of, new_key
from trinity_serve.api.limits import ApiLimits
from trinity_serve.api.server import create_app
from trinity_serve.api.service import ModelService
from trinity_serve.http_protocol import HttpProtocol
from trinity_serve.model.generation_config import GenerationDefaults

KEY = new_key()


class QuickProtocol(HttpProtocol):
    """Waits for a head as long as a test may."""

    header_timeout_s = 0.5


@pytest.fixture
def quick(tiny_checkpoint: Path) -> Iterator[tuple[str, int]]:
    """A server over a scripted engine that ends slow heads soon; its host and port."""
    service = ModelService.from_folder(
        tiny_checkpoint,
        name="tiny",
        defaults=GenerationDefaults(eos_token_ids=(3,)),
        max_model_len=500,
        vocab_size=512,
    )
    limits = ApiLimits(body_timeout_s=0.5)
    with listening_with(create_app(ScriptedEngine(), service, limits), QuickProtocol) as url:
        yield address_of(url)
    service.close()


def address_of(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def told_until_the_end(connection: socket.socket) -> bytes:
    """Return all that comes until the server closes; fails when it does not."""
    connection.settimeout(10.0)
    told = b""
    try:
        while part := connection.recv(65536):
            told += part
    except ConnectionResetError:
        pass
    return told


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"GET /hea", b""),
        (HEAD + b"X-A: 1\r\n", b""),
        (b"\r\n\r\n", b""),
        (HEAD + b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{", b"504"),
        (HEAD + b"X-A: " + b"a" * 200_000, b""),
    ],
)
def test_a_client_that_does_not_go_on_is_let_go(
    quick: tuple[str, int], sent: bytes, answer: bytes
) -> None:
    with socket.create_connection(quick) as connection:
        try:
            connection.sendall(sent)
        except OSError:
            return
        assert answer in told_until_the_end(connection)


def test_a_head_that_comes_byte_by_byte_has_one_time_for_all_of_it(quick: tuple[str, int]) -> None:
    with socket.create_connection(quick) as connection:
        connection.settimeout(0.05)
        ends_s = time.monotonic() + 10.0
        while time.monotonic() < ends_s:
            try:
                connection.sendall(b"G")
                if not connection.recv(100):
                    return
            except TimeoutError:
                continue
            except OSError:
                return
    raise AssertionError("the connection was kept")


def test_a_whole_request_after_a_blank_line_is_served(quick: tuple[str, int]) -> None:
    with socket.create_connection(quick) as connection:
        for _ in range(2):
            connection.sendall(b"\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            told = b""
            # Head and body may come in pieces of their own.
            while not told.endswith(b"}"):
                part = connection.recv(65536)
                assert part, told
                told += part
            assert b"200 OK" in told


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_bomb_at_the_port_is_bytes_like_any(
    inline_process: RunningServer, tmp_path: Path
) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    head = HEAD + b"Content-Type: application/%b\r\nContent-Length: %d\r\n\r\n"
    for sent in (bomb, head % (b"json", len(bomb)) + bomb, head % (b"pickle", len(bomb)) + bomb):
        with socket.create_connection(address_of(inline_process.url)) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            assert b"400" in told_until_the_end(connection)
    assert not (tmp_path / "exploded").exists()


def test_an_inline_server_listens_on_one_port_with_tls_and_keys(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    files, others = make_certificates(tmp_path / "a"), make_certificates(tmp_path / "b")
    keys = tmp_path / "keys"
    keys.write_text(json.dumps({"name": "a", "sha256": hash_of(KEY)}))
    tls = ("--tls-cert-file", files.cert_file, "--tls-key-file", files.key_file)
    model = ("--model", str(tiny_checkpoint), "--kv-memory", "16MiB", "--threads", "1")
    with trinity_server([*model, *tls, "--api-keys-file", str(keys)]) as server:
        (port,) = listening_ports([server.process.pid])
        assert (port.host, port.port) == address_of(server.url)
        assert status(f"{server.url}/v1/models", files.ca_file, KEY) == 200
        assert status(f"{server.url}/v1/models", files.ca_file) == 401
        replace_with(files, others)
        assert status(f"{server.url}/v1/models", others.ca_file, KEY) == 200


def status(url: str, ca_file: str, key: str = "") -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    context = ssl.create_default_context(cafile=ca_file)
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
