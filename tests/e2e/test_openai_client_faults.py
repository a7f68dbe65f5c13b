"""What clients see of stops, errors and their own going away; the engine plays a script."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import openai
import orjson
import pytest

from cluster.errors import OverloadedError, ShardFailedError
from tests.e2e.conftest import ScriptedServer, eventually

FREED_WITHIN_S = 1.0


@pytest.fixture
def client(scripted_server: ScriptedServer) -> Iterator[openai.OpenAI]:
    url = f"{scripted_server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def _say(server: ScriptedServer, text: str) -> int:
    """Make the engine say `text` and then end; return how many tokens that is."""
    ids = server.service.tokenizer.encode(text, add_special_tokens=False)
    server.engine.script = lambda request: [*ids, 3]
    return len(ids) + 1


def _open(server: ScriptedServer, *, stream: bool, n: int = 1) -> socket.socket:
    """Send a request on a bare socket, which can be closed at any moment."""
    body = orjson.dumps({"prompt": "hello", "max_tokens": 400, "stream": stream, "n": n})
    host, port = urlsplit(server.url).hostname, urlsplit(server.url).port
    connection = socket.create_connection((host, port), timeout=10.0)
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    return connection


def test_a_stop_string_over_chunks_is_neither_sent_nor_counted_past(
    client: openai.OpenAI, scripted_server: ScriptedServer
) -> None:
    in_all = _say(scripted_server, "one two three four five")
    chunks = list(
        client.completions.create(
            model="tiny",
            prompt="x",
            max_tokens=100,
            stop=["ree f", "never"],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *with_choice, last = chunks
    assert "".join(chunk.choices[0].text for chunk in with_choice) == "one two th"
    assert with_choice[-1].choices[0].finish_reason == "stop"
    assert with_choice[-1].choices[0].to_dict()["stop_reason"] == "ree f"
    assert last.usage is not None
    assert last.usage.completion_tokens < in_all
    assert not scripted_server.engine.open


def test_text_comes_whole_however_tokens_cut_its_characters(
    client: openai.OpenAI, scripted_server: ScriptedServer
) -> None:
    text = "naïve ☃ 日本語 🙂 end"
    _say(scripted_server, text)
    parts = [
        chunk.choices[0].text
        for chunk in client.completions.create(
            model="tiny", prompt="x", max_tokens=100, stream=True
        )
    ]
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)


def test_a_full_queue_is_a_rate_limit_error_with_retry_after(
    client: openai.OpenAI, scripted_server: ScriptedServer
) -> None:
    scripted_server.engine.refusal = OverloadedError("waiting queue", 4, 2.0)
    with pytest.raises(openai.RateLimitError) as caught:
        client.completions.create(model="tiny", prompt="x", stream=True)
    assert caught.value.response.headers["retry-after"] == "2"


def test_an_error_in_the_middle_of_a_stream_is_raised_by_the_client(
    client: openai.OpenAI, scripted_server: ScriptedServer
) -> None:
    engine = scripted_server.engine
    engine.failure, engine.fail_after = ShardFailedError(1, "it broke"), 3
    stream = client.completions.create(model="tiny", prompt="hello", stream=True)
    with pytest.raises(openai.APIError, match=r"Shard 1 failed: it broke\."):
        list(stream)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_goes_away_frees_everything_within_a_second(
    scripted_server: ScriptedServer, stream: bool, n: int
) -> None:
    engine = scripted_server.engine
    engine.stall_after = 2
    connection = _open(scripted_server, stream=stream, n=n)
    assert eventually(lambda: engine.num_emitted == 2 * n, 10.0)
    assert len(engine.open) == n
    connection.close()
    assert eventually(lambda: not engine.open, FREED_WITHIN_S)


def test_a_client_that_stops_reading_its_stream_is_let_go_when_it_closes(
    client: openai.OpenAI, scripted_server: ScriptedServer
) -> None:
    engine = scripted_server.engine
    engine.stall_after = 3
    stream = client.completions.create(model="tiny", prompt="hello", max_tokens=400, stream=True)
    next(iter(stream))
    stream.close()
    assert eventually(lambda: not engine.open, FREED_WITHIN_S)


def test_the_server_answers_on_after_clients_went_away(
    client: openai.OpenAI, scripted_server: ScriptedServer
) -> None:
    engine = scripted_server.engine
    engine.stall_after = 1
    for _ in range(3):
        _open(scripted_server, stream=True).close()
    assert eventually(lambda: len(engine.requests) == 3 and not engine.open, 10.0)
    engine.stall_after = None
    assert client.completions.create(model="tiny", prompt="x", max_tokens=3).choices[0].text


def test_tokens_of_one_batch_come_as_events_of_their_own(
    client: openai.OpenAI, scripted_server: ScriptedServer
) -> None:
    scripted_server.engine.batch_size = 4
    chunks = list(
        client.completions.create(model="tiny", prompt=[70, 71], max_tokens=8, stream=True)
    )
    assert len(chunks) == 8
