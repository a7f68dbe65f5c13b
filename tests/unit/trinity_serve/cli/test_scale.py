"""`trinity scale` and `trinity status` against a server in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.membership import Membership
from cluster.pool_messages import Scale, Target
from cluster.pool_status import describe_operation, describe_pool
from tests.support.pool import NUM_EXPERTS, NUM_LAYERS, World
from trinity_serve.admin_token import FILE_HEADER, AdminToken
from trinity_serve.cli.main import main


@dataclass
class AdminServer:
    """Answers admin calls; its pool makes some progress with each question."""

    token: AdminToken
    url: str = ""
    world: World = field(
        default_factory=lambda: World(Membership(NUM_LAYERS, NUM_EXPERTS, Scale.of(Target(2))))
    )
    asked: list[object] = field(default_factory=list)
    advance: Callable[[World], None] = World.settle

    def answer(self, body: object) -> object:
        pool = self.world.pool
        if body is None:
            self.advance(self.world)
            return asdict(describe_pool(pool, self.world.now_s))
        assert isinstance(body, dict)
        self.asked.append(body)
        if "shards" not in body:
            return None
        target = Target(body["shards"], body.get("replicas", 1), body.get("replica_bytes", 0))
        return asdict(describe_operation(pool.scale_to(target, "op")))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AdminServer]:
    admin = AdminServer(AdminToken.open(tmp_path))
    admin.world.settle()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(None)

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, body: object) -> None:
            allowed = self.headers["Authorization"] == f"Bearer {admin.token.token}"
            text = json.dumps(admin.answer(body) if allowed else {"error": {"message": "no"}})
            self.send_response(200 if allowed else 403)
            self.send_header(FILE_HEADER, str(admin.token.path))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    admin.url = f"http://127.0.0.1:{http.server_port}"
    yield admin
    http.shutdown()
    http.server_close()


def test_scale_waits_until_the_operation_is_done(
    server: AdminServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scale", "--shards", "3", "--url", server.url]) == 0
    assert capsys.readouterr().out.splitlines() == ["done"]
    assert server.asked == [{"shards": 3}]


def test_a_budget_for_further_copies_is_given_as_a_size(server: AdminServer) -> None:
    assert main(["scale", "--shards", "2", "--replica-bytes", "2KiB", "--url", server.url]) == 0
    assert server.asked == [{"shards": 2, "replica_bytes": 2048}]
    assert server.world.pool.scale.target == Target(2, 1, 2048)
    assert main(["scale", "--replica-bytes", "much", "--url", server.url]) == 2


def test_scale_ends_with_1_and_the_reason_when_it_was_rolled_back(
    server: AdminServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(world: World) -> None:
        world.pool._scaling.roll_back("no such file")
        world.settle()

    server.advance = fail
    assert main(["scale", "--shards", "3", "--url", server.url]) == 1
    assert "rolled_back: no such file" in capsys.readouterr().out


def test_ranks_alone_are_asked_for_without_waiting(server: AdminServer) -> None:
    assert main(["scale", "--ranks", "2", "--url", server.url]) == 0
    assert server.asked == [{"ranks": 2}]


def test_status_tells_shards_and_failures(
    server: AdminServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.world.die(server.world.living[0])
    server.advance = lambda world: None
    assert main(["status", "--url", server.url]) == 1
    text = capsys.readouterr().out
    assert "NOT EVERY EXPERT COVERED (8 are not)" in text
    assert "for load: 0 moved, 0 further copies" in text
    assert "attention ranks: 1\n" in text
    assert "shard 1.2  ready      8 of 8 experts  node" in text
    assert "shard 0.1: its process ended" in text


def test_status_as_json_is_what_the_server_answers(
    server: AdminServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--json", "--url", server.url]) == 0
    assert json.loads(capsys.readouterr().out)["settled"] is True


def test_a_server_that_does_not_answer_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", "http://127.0.0.1:9"]) == 2
    assert "nothing answers at http://127.0.0.1:9" in capsys.readouterr().err
