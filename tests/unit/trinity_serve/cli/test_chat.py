"""The terminal chat against a real HTTP server that plays a script."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from trinity_serve.cli.chat import Conversation
from trinity_serve.cli.endpoint import Endpoint, EndpointError, Message
from trinity_serve.cli.main import main

ANSWER = ["Hel", "lo", " 🙂"]


class ScriptedServer(ThreadingHTTPServer):
    """Answers chat requests with `lines`, and keeps the bodies it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ScriptedHandler)
        self.lines = [chunk(piece) for piece in ANSWER] + ["data: [DONE]"]
        self.status = 200
        self.models: list[dict[str, str]] = [{"id": "demo"}]
        self.bodies: list[dict[str, object]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class ScriptedHandler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def do_GET(self) -> None:
        self._answer(json.dumps({"data": self.server.models}))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(json.loads(body))
        self._answer("\n\n".join(self.server.lines) + "\n\n")

    def _answer(self, text: str) -> None:
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


def chunk(piece: str) -> str:
    return "data: " + json.dumps({"choices": [{"delta": {"content": piece}}]})


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as scripted:
        thread = Thread(target=scripted.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield scripted
        scripted.shutdown()
        thread.join(timeout=5)


def ask(server: ScriptedServer, *lines: str) -> Sequence[Message]:
    conversation = Conversation(Endpoint(server.url), "demo", {})
    for line in lines:
        assert conversation.handle(line)
    return conversation.messages


def test_an_answer_is_printed_as_it_comes_and_kept(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    messages = ask(server, "hi")
    assert capsys.readouterr().out == "Hello 🙂\n"
    assert messages == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Hello 🙂"},
    ]


def test_the_next_turn_carries_the_earlier_ones(server: ScriptedServer) -> None:
    ask(server, "/system be brief", "one", "two")
    sent = server.bodies[1]["messages"]
    assert isinstance(sent, list)
    assert [turn["content"] for turn in sent] == ["be brief", "one", "Hello 🙂", "two"]


def test_reset_keeps_the_system_prompt_and_forgets_the_turns(server: ScriptedServer) -> None:
    messages = ask(server, "/system be brief", "one", "/reset")
    assert messages == [{"role": "system", "content": "be brief"}]


def test_an_empty_system_prompt_takes_the_old_one_away(server: ScriptedServer) -> None:
    assert ask(server, "/system be brief", "/system") == []


def test_an_unknown_slash_word_is_explained_and_not_sent(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(server, "/help")
    assert "/reset" in capsys.readouterr().out
    assert server.bodies == []


@pytest.mark.parametrize(
    ("status", "lines", "wanted"),
    [
        (400, ['{"error": {"message": "too hot"}}'], "400: too hot"),
        (502, ["<html>"], "502 Bad Gateway"),
        (200, ['data: {"error": {"message": "lost a shard"}}'], "lost a shard"),
        (200, [chunk("half")], "without [DONE]"),
        (200, ["data: {broken"], "not JSON"),
    ],
)
def test_a_refused_or_broken_turn_is_told_and_forgotten(
    server: ScriptedServer,
    capsys: pytest.CaptureFixture[str],
    status: int,
    lines: list[str],
    wanted: str,
) -> None:
    server.status, server.lines = status, lines
    assert ask(server, "hi") == []
    assert wanted in capsys.readouterr().err


def test_an_interrupt_stops_the_answer_and_keeps_what_came(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted_after_one_piece(*_args: object) -> Iterator[str]:
        yield "Hel"
        raise KeyboardInterrupt

    monkeypatch.setattr(Endpoint, "stream_chat", interrupted_after_one_piece)
    assert ask(server, "hi")[-1] == {"role": "assistant", "content": "Hel"}


def test_quit_ends_the_conversation(server: ScriptedServer) -> None:
    assert not Conversation(Endpoint(server.url), "demo", {}).handle("/quit")


def test_the_first_model_served_is_taken(server: ScriptedServer) -> None:
    server.models.append({"id": "other"})
    assert Endpoint(server.url + "/v1/").first_model() == "demo"


def test_an_endpoint_without_models_is_refused(server: ScriptedServer) -> None:
    server.models.clear()
    with pytest.raises(EndpointError, match="serves no model"):
        Endpoint(server.url).first_model()


def test_an_address_where_nothing_listens_is_refused_in_one_line(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.server_close()
    assert main(["chat", "--url", server.url]) == 2
    assert f"nothing answers at {server.url}/v1" in capsys.readouterr().err


def test_an_address_that_is_not_http_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--url", "file:///etc/passwd"]) == 2
    assert "http://" in capsys.readouterr().err
